// Keeps the pages as they are now: rows of the list by events, everything else by loading it anew.
const REFRESH_SECONDS = document.querySelector("[data-rows]") ? 15 : 5;
const list = document.querySelector("[data-rows]");
const study = document.querySelector("[data-study]")?.dataset.study;
const status = document.getElementById("live");
const parts = new Map();
let source = null;
let waiting = null;

for (const part of document.querySelectorAll("[data-refresh]")) parts.set(part.id, part.innerHTML);

// --- everything else ---------------------------------------------------------------------------------------

// What a reader works on is left alone, and so is what has not changed.
async function refresh() {
  let answer, text;
  try {
    answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    text = await answer.text();  // breaks off when the reader leaves the page, or Hilum ends
  } catch {
    say("Hilum does not answer: this page shows how things were.");
    return;
  }
  if (answer.redirected && new URL(answer.url).pathname === "/login") return location.reload();
  if (!answer.ok) return say("Hilum cannot say how things are: this page shows how they were.");
  say("");
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const [id, before] of parts) {
    const part = document.getElementById(id);
    const now = fresh.getElementById(id)?.innerHTML ?? "";
    if (now === before || part.contains(document.activeElement)) continue;
    parts.set(id, now);
    part.innerHTML = now;
    part.dispatchEvent(new CustomEvent("hilum:changed", { bubbles: true }));
  }
  if (list) for (const row of fresh.querySelectorAll("#rows tr")) place(document.adoptNode(row));
}

function refreshSoon() {
  waiting ??= setTimeout(() => { waiting = null; refresh(); }, 200);
}

function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

// --- the list ----------------------------------------------------------------------------------------------

function fits(row) {
  const { state, finding, attention, feedback, backfilled, since, until } = list.dataset;
  const received = Date.parse(row.dataset.received);
  return row.dataset.backfilled === backfilled
    && (!state || row.dataset.state === state)
    && (!finding || row.dataset.finding === finding)
    && (!attention || row.dataset.attention === attention)
    && (!feedback || says(row, feedback))
    && (!since || received >= Date.parse(since))
    && (!until || received < Date.parse(until));
}

// Of readers who say different things the row does not tell who said what: what is there is left to the server.
function says(row, feedback) {
  const { feedback: said, review, finding, uid } = row.dataset;
  if (feedback === "to_review") return review === "true";
  if (feedback === "none") return finding !== "" && said === "";
  if (feedback === "given") return said !== "";
  return said === feedback || (said === "mixed" && document.querySelector(`[data-uid="${CSS.escape(uid)}"]`) !== null);
}

function place(row) {
  const rows = document.getElementById("rows");
  const before = rows.querySelector(`[data-uid="${CSS.escape(row.dataset.uid)}"]`);
  const focused = before?.contains(document.activeElement);
  if (!fits(row)) return before?.remove();
  if (before) {
    if (before.outerHTML === row.outerHTML) return;
    before.replaceWith(row);
    if (focused) row.querySelector("a").focus();
    return;
  }
  if (list.dataset.first !== "true") return;
  const received = Date.parse(row.dataset.received);
  const older = [...rows.children].find((other) => Date.parse(other.dataset.received) <= received);
  if (!older && rows.children.length >= Number(list.dataset.most)) return;
  rows.insertBefore(row, older ?? null);
  while (rows.children.length > Number(list.dataset.most)) rows.lastElementChild.remove();
  document.getElementById("none").hidden = true;
}

function happened(message) {
  const told = JSON.parse(message.data);
  if (list) {
    const template = document.createElement("template");
    template.innerHTML = told.row;
    place(template.content.querySelector("tr"));
  } else if (told.study.study_instance_uid === study) {
    refreshSoon();
  }
}

// --- events ------------------------------------------------------------------------------------------------

// A browser has six connections to a server: a page that nobody looks at takes none.
function listen() {
  if (source || document.hidden || !(list || study)) return;
  source = new EventSource(list ? "/api/events?rows=true" : "/api/events");
  source.onmessage = happened;
  source.onopen = refreshSoon;
  source.addEventListener("reset", refreshSoon);
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) hush();  // tried again with the next refresh
  };
}

function hush() {
  source?.close();
  source = null;
}

function shownOrHidden() {
  if (document.hidden) return hush();
  listen();
  refreshSoon();
}

document.addEventListener("visibilitychange", shownOrHidden);
addEventListener("pagehide", hush);
addEventListener("pageshow", listen);
setInterval(() => {
  if (document.hidden) return;
  listen();
  refreshSoon();
}, REFRESH_SECONDS * 1000);

// --- ages --------------------------------------------------------------------------------------------------

function age(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

setInterval(() => {
  for (const place of document.querySelectorAll(".age[data-since]")) {
    const text = age((Date.now() - Date.parse(place.dataset.since)) / 1000);
    if (place.textContent !== text) place.textContent = text;
  }
}, 1000);
