// What has happened, newest first. Each event brings its own words and tone (memoria/engine/events.py).

import { byId, make } from "./dom.js";
import { clock } from "./format.js";

const KEPT = 300;
const MARKS = { good: "✓", warn: "!", bad: "✕" };

export function showEvent({ at, subject, text, tone }) {
  const words = make("span", "", {}, make("b", subject), ` ${text.replace(/\bgpu (?=\d)/, "gpu\u00a0")}`);
  const mark = make("i", MARKS[tone] ?? "·", { "aria-hidden": "true" });
  byId("events").prepend(make("li", "", tone in MARKS ? { class: tone } : {}, make("time", clock(at)), mark, words));
  while (byId("events").childElementCount > KEPT) byId("events").lastElementChild.remove();
}

export const clearEvents = () => byId("events").replaceChildren();
