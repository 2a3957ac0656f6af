"""Templates into answers of the API."""

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

from fastapi.responses import HTMLResponse

from service.api import schemas
from service.api.explain import KINDS
from service.api.page.document import environment
from service.api.roles import Act


def policy(**sources: str) -> str:
    """Return a Content-Security-Policy that allows nothing but these sources; dashes as underscores."""
    directives = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        **{name.replace("_", "-"): value for name, value in sources.items()},
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


_HEADERS = {
    "Content-Security-Policy": policy(
        script_src="'self'", style_src="'self'", img_src="'self'", connect_src="'self'", form_action="'self'"
    ),
    # With no-referrer a browser says "Origin: null" of our own forms. Other sites hear as little by this.
    "Referrer-Policy": "same-origin",
}
environment.globals.update(Act=Act, KINDS=KINDS)


def page(
    template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a rendered page with the headers of pages and those given."""
    content = environment.get_template(template).render(**values)
    return HTMLResponse(content, status, {**_HEADERS, **(headers or {})})


def fragment(template: str, **values: Any) -> HTMLResponse:
    """Return a rendered part of a page."""
    return HTMLResponse(environment.get_template(template).render(**values))


def row(study: schemas.StudySummary, zone: tzinfo | None) -> str:
    """Return a study as a row of the list."""
    return environment.get_template("row.html").render(study=study, zone=zone)
