// What has happened, newest first, in words for a person who has not read the state machine.

import { byId, make } from "./dom.js";
import { clock } from "./format.js";

const KEPT = 300;

// The journal's words: how they are told here, how much they matter, and what joins them to a detail.
const WORDS = {
  listening: ["listens on", "good", " "],
  stopping: ["is stopping", ""],
  "reload refused, nothing has changed": ["did not reload, nothing has changed", "bad"],
  "start asked": ["is asked to start", "", " "],
  "stop asked": ["is asked to stop", "", " "],
  "restart asked": ["is asked to restart", "", " "],
  queued: ["waits to be started", ""],
  starting: ["is starting", ""],
  ready: ["is ready", "good"],
  suspect: ["makes no progress", "warn"],
  draining: ["finishes its requests", ""],
  releasing: ["has ended, its memory comes back", ""],
  held: ["has ended, its memory does not come back", "bad"],
  backoff: ["failed and will be tried again", "warn"],
  failed: ["has failed for good", "bad"],
  stopped: ["is stopped", ""],
  "passed the gate": ["begins to load on", "", " "],
  "left the gate": ["lets the next one load on", "", " "],
  "waits for memory": ["waits for memory", "warn"],
  "drain timed out": ["did not finish its requests in time", "warn"],
  killed: ["was killed", "warn"],
  "killed what outlived its leader": ["left processes behind, they were killed", "warn"],
  "no passenger": ["cannot be held at the gate", "warn"],
  "beside the plan": ["is not as planned", "warn"],
  "standby waits at the gate": ["has a standby ready", "good"],
  "standby takes over": ["is taken over by its standby", "warn"],
  "standby ended": ["lost its standby", "warn"],
  "standby could not be spawned": ["has no standby", "warn"],
};
// Details that repeat what the words say already: the events that led there (engine/lifecycle.py).
const SAID = new Set(["start asked", "stop asked", "may be spawned", "answered a request", "exited", "delay is over",
  "starts again later", "starts again at once", "is given up", "no request left", "stays stopped", "makes no progress",
  "memory not released"]);
const MARKS = { good: "✓", warn: "!", bad: "✕", "": "·" };

export function tellEvent({ at, subject, what, detail }) {
  const [words, weight, joint = ": "] = WORDS[what] ?? [what, ""];
  const more = detail && !SAID.has(detail) ? joint + detail.replace(/\bgpu (?=\d)/, "gpu\u00a0") : "";
  const text = make("span", "", {}, make("b", subject), ` ${words}${more}`);
  const mark = make("i", MARKS[weight], { "aria-hidden": "true" });
  byId("events").prepend(make("li", "", weight ? { class: weight } : {}, make("time", clock(at)), mark, text));
  while (byId("events").childElementCount > KEPT) byId("events").lastElementChild.remove();
}

export const forgetEvents = () => byId("events").replaceChildren();
