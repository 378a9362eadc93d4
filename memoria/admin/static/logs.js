// The engines' logs, live: a tab each, a filter, and the end kept in sight until the reader scrolls up.

import { may, whyNot } from "./access.js";
import { byId, make } from "./dom.js";
import { ask, lines, pause } from "./memoria.js";

const KEPT = 2000;
const [place, tabs, filter, follow] = ["log", "log-tabs", "log-filter", "log-follow"].map(byId);
let names = [];
let shown = null;
let seen = [];
let undrawn = 0; // how many of the seen are not drawn yet
let outer = null; // ends with the connection to memoria
let reading = new AbortController();

export function offerLogs(engines) {
  if (engines.join("\n") === names.join("\n")) return;
  names = engines;
  tabs.replaceChildren(...names.map((name) => {
    const tab = make("button", name, { type: "button", role: "tab", "aria-controls": "log" });
    tab.addEventListener("click", () => show(name));
    return tab;
  }));
  show(names.includes(shown) ? shown : names[0]);
}

export function openLog(signal) {
  outer = signal;
  if (shown !== null) show(shown);
}

function show(name) {
  shown = name;
  for (const tab of tabs.children) {
    const selected = tab.textContent === name;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
  }
  reading.abort();
  reading = new AbortController();
  if (may("logs")) read(name, AbortSignal.any([reading.signal, outer]));
  else begin(whyNot("logs", "Reading logs"));
}

async function read(name, signal) {
  while (!signal.aborted) {
    begin();
    try {
      for await (const line of lines(await ask(`admin/logs/${name}?lines=200&follow=true`, { signal }))) {
        if (signal.aborted) return;
        seen.push(line);
        undrawn += 1;
        schedule();
      }
    } catch (error) {
      if (error.status && !signal.aborted) return begin(error.message);
    }
    await pause(2, signal);
  }
}

// Empties the log; a `problem` stays in its place.
function begin(problem = "") {
  seen = [];
  undrawn = 0;
  place.classList.toggle("quiet", problem !== "");
  place.replaceChildren(problem);
}

let isScheduled = false;
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    drawNew();
  });
}

// Lines are only appended, so that a selection survives.
function drawNew() {
  const wanted = filter.value.toLowerCase();
  const added = seen.slice(seen.length - undrawn).filter((line) => line.toLowerCase().includes(wanted));
  place.append(...added.map(drawn));
  undrawn = 0;
  seen = seen.slice(-KEPT);
  while (place.childElementCount > KEPT) place.firstElementChild.remove();
  toEnd();
}

function drawn(line) {
  const level = /\b(?:ERROR|CRITICAL|FATAL)\b/.test(line) ? "bad" : /\bWARNING\b/.test(line) ? "warn" : "";
  return make("span", `${line}\n`, level ? { class: level } : {});
}

function toEnd() {
  if (follow.checked) place.scrollTop = place.scrollHeight;
}

filter.addEventListener("input", () => {
  if (seen.length === 0) return;
  place.replaceChildren();
  undrawn = seen.length;
  drawNew();
});
window.addEventListener("resize", toEnd);
follow.addEventListener("change", toEnd);
place.addEventListener("scroll", () => {
  follow.checked = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
});
tabs.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  show(names[(names.indexOf(shown) + step + names.length) % names.length]);
  tabs.children[names.indexOf(shown)].focus();
});
