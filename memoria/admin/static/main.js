// What memoria tells, drawn as it comes; grey when nothing has been heard of it for a while.

import { ask, events, key, pause } from "./memoria.js";
import { UNKNOWN, clock, duration, make, milliseconds } from "./format.js";
import { drawDevices } from "./devices.js";
import { drawEngines } from "./engines.js";
import { offerLogs, reopenLog } from "./logs.js";
import { offerModels } from "./playground.js";

const SILENCE = 6; // seconds
const EVENTS_KEPT = 300;
const REQUESTS_KEPT = 100;
const byId = (id) => document.getElementById(id);
const colors = new Map();
let lastEvent = 0;
let lastRequest = 0;
let heard = 0;
let connection = new AbortController();

function draw(status) {
  for (const engine of status.engines) if (!colors.has(engine.name)) colors.set(engine.name, colors.size % 4);
  byId("version").textContent = status.version;
  const ready = status.engines.filter((engine) => engine.state === "ready").length;
  byId("summary").textContent = `${status.status}: ${ready} of ${status.engines.length} engines ready, up ${duration(status.uptime)}`;
  document.title = status.status === "healthy" ? "memoria" : `memoria: ${status.status}`;
  drawDevices(byId("devices"), status, colors);
  drawEngines(byId("engines"), status, { steer, allowed: () => key.get() !== "" });
  offerLogs(status.engines.map((engine) => engine.name));
  offerModels(status.engines);
}

function tell(entry) {
  lastEvent = entry.number;
  const detail = entry.detail ? `: ${entry.detail}` : "";
  const text = make("span", `${entry.subject} ${entry.what}${detail}`);
  const item = make("li", "", {}, make("time", clock(entry.at)), text);
  byId("events").prepend(item);
  while (byId("events").childElementCount > EVENTS_KEPT) byId("events").lastElementChild.remove();
}

async function steer(engine, wish) {
  try {
    await ask(`admin/engines/${engine}/${wish}`, { method: "POST" });
    notice("");
  } catch (error) {
    notice(`${wish} ${engine}: ${error.message}`);
  }
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = text === "";
}

function stale(is) {
  document.body.classList.toggle("stale", is);
  if (is) byId("summary").textContent = "no connection to memoria; what is shown is old";
}

async function listen(signal) {
  while (!signal.aborted) {
    try {
      const answer = await ask(`admin/events?after=${lastEvent}`, { signal });
      notice("");
      for await (const [kind, data] of events(answer)) {
        heard = performance.now();
        stale(false);
        if (kind === "status") draw(JSON.parse(data));
        else tell(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status) notice(error.message);
    }
    stale(true);
    await pause(1);
    lastEvent = document.body.classList.contains("stale") ? await restarted(lastEvent) : lastEvent;
  }
}

// A memoria that was started anew counts its events from 1.
async function restarted(last) {
  try {
    const status = await (await ask("admin/status")).json();
    if (status.uptime > (performance.now() - heard) / 1000 + 1) return last;
    byId("events").replaceChildren();
    lastRequest = 0;
    return 0;
  } catch {
    return last;
  }
}

async function watchRequests() {
  for (;;) {
    try {
      const { requests } = await (await ask(`admin/requests?limit=${REQUESTS_KEPT}&after=${lastRequest}`)).json();
      byId("requests-none").hidden = lastRequest > 0 || requests.length > 0;
      for (const request of requests) byId("requests").prepend(row(request));
      while (byId("requests").childElementCount > REQUESTS_KEPT) byId("requests").lastElementChild.remove();
      lastRequest = requests.at(-1)?.number ?? lastRequest;
    } catch (error) {
      if (error.status) byId("requests-none").textContent = error.message;
    }
    await pause(1);
  }
}

function row(request) {
  const tokens = request.prompt_tokens === null ? UNKNOWN : `${request.prompt_tokens}+${request.completion_tokens ?? 0}`;
  const marks = (request.aborted ? " aborted" : "") + (request.replays ? " replayed" : "");
  return make("tr", "", {}, make("td", clock(request.at)),
    make("td", String(request.status), request.status >= 400 ? { class: "bad" } : {}),
    make("td", milliseconds(request.duration_s)), make("td", milliseconds(request.first_byte_s)),
    make("td", tokens), make("td", (request.route ?? UNKNOWN) + marks));
}

function connect() {
  connection.abort();
  connection = new AbortController();
  listen(connection.signal);
}

byId("key").value = key.get();
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("requests-none").textContent = "none yet";
  connect();
  reopenLog();
});
setInterval(() => performance.now() - heard > SILENCE * 1000 && heard && stale(true), 1000);
connect();
watchRequests();
