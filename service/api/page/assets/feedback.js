// Stores feedback without loading the page anew; where this does not run, the form does it by itself.
const said = document.getElementById("feedback-said");
const history = document.getElementById("feedback-history");
let underWay = false;

function remember() {
  const name = document.getElementById("reader");
  if (!name) return;
  try {
    if (!name.value) name.value = sessionStorage.getItem("reader") ?? "";
  } catch { /* storage is off */ }
}

async function send(form, button) {
  const body = new URLSearchParams(new FormData(form));
  body.set(button.name, button.value);
  said.textContent = "";
  let answer;
  try {
    answer = await fetch(form.action, { method: "POST", body, headers: { "X-Part": "history" } });
  } catch {
    return complain("Hilum does not answer: nothing was stored. Try again.");
  }
  if (answer.redirected) return location.reload();  // to sign in again
  const text = await answer.text();
  if (!answer.ok) {
    const problem = new DOMParser().parseFromString(text, "text/html").querySelector("main p");
    return complain(problem?.textContent ?? "Nothing was stored.");
  }
  history.innerHTML = text;
  said.className = "stored";
  said.textContent = `Stored: ${button.textContent.toLowerCase()}.`;
  form.elements.own_finding.value = "";
  if (form.elements.note) form.elements.note.value = "";
  try {
    sessionStorage.setItem("reader", form.elements.reader.value);
  } catch { /* storage is off */ }
}

function complain(text) {
  said.className = "alarm";
  said.textContent = text;
}

document.addEventListener("submit", async (event) => {
  if (!event.target.matches("form[data-feedback]") || !event.submitter) return;
  event.preventDefault();
  if (underWay) return;  // a second click is no second opinion
  underWay = true;
  try {
    await send(event.target, event.submitter);
  } finally {
    underWay = false;
  }
});
document.addEventListener("hilum:changed", remember);
remember();
