// Shows the OpenAPI description; what is tried out from here repeats the token of the page.
const csrf = document.querySelector("meta[name=csrf]").content;

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (csrf) request.headers["X-CSRF-Token"] = csrf;
    return request;
  },
});
