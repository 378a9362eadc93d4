// The engines' logs, live: one tab each, a filter, and the end kept in sight.

import { ask, lines, pause } from "./memoria.js";
import { make } from "./format.js";

const KEPT = 2000;
const place = document.getElementById("log");
const tabs = document.getElementById("log-tabs");
const filter = document.getElementById("log-filter");
const follow = document.getElementById("log-follow");
let shown = null;
let seen = [];
let reading = new AbortController();

export function offerLogs(names) {
  if (tabs.childElementCount === names.length) return;
  tabs.replaceChildren(...names.map((name) => {
    const tab = make("button", name, { type: "button", role: "tab", "aria-controls": "log" });
    tab.addEventListener("click", () => show(name));
    return tab;
  }));
  show(names[0]);
}

export const reopenLog = () => shown !== null && show(shown);

function show(name) {
  shown = name;
  for (const tab of tabs.children) {
    const selected = tab.textContent === name;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
  }
  reading.abort();
  reading = new AbortController();
  read(name, reading.signal);
}

async function read(name, signal) {
  while (!signal.aborted) {
    try {
      seen = [];
      draw();
      for await (const line of lines(await ask(`admin/logs/${name}?lines=200&follow=true`, { signal }))) {
        seen.push(line);
        if (seen.length > KEPT) seen = seen.slice(-KEPT);
        schedule();
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status) {
        place.textContent = error.message;
        return;
      }
    }
    await pause(2);
  }
}

let scheduled = false;
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}

function draw() {
  const wanted = filter.value.toLowerCase();
  place.textContent = seen.filter((line) => line.toLowerCase().includes(wanted)).join("\n");
  if (follow.checked) place.scrollTop = place.scrollHeight;
}

filter.addEventListener("input", draw);
window.addEventListener("resize", draw);
follow.addEventListener("change", draw);
tabs.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const all = [...tabs.children];
  const next = all[(all.findIndex((tab) => tab.textContent === shown) + step + all.length) % all.length];
  show(next.textContent);
  next.focus();
});
