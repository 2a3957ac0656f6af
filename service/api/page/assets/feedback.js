// Stores feedback without loading the page anew; where this does not run, the form does it by itself.
const said = document.getElementById("feedback-said");
const history = document.getElementById("feedback-history");
let underWay = false;

// The name is remembered for as long as somebody is signed in: workstations of a reading room are shared.
function place(form) {
  return `reader ${form.elements.csrf.value.slice(0, 8)}`;
}

function remember() {
  const form = document.querySelector("form[data-feedback]");
  if (!form || form.elements.reader.value) return;
  try {
    form.elements.reader.value = sessionStorage.getItem(place(form)) ?? "";
  } catch { /* storage is off */ }
}

async function send(form, button) {
  const body = new URLSearchParams(new FormData(form));
  body.set(button.name, button.value);
  said.textContent = "";
  let answer, text;
  try {
    answer = await fetch(form.action, { method: "POST", body, headers: { "X-Part": "history" } });
    text = await answer.text();
  } catch {
    return complain("Hilum does not answer. Load this page again to see whether it was stored.");
  }
  if (answer.redirected) return location.reload();  // to sign in again
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
    sessionStorage.setItem(place(form), form.elements.reader.value);
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
