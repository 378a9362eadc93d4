// Five minutes of the engines' figures as sampled by memoria, and their lines.

import { makeSvg, setAttribute } from "./dom.js";
import { known } from "./format.js";

const SECONDS = 300;
const HEIGHT = 40;
let samples = [];

// `more`: the samples since the last call, or all of them after a reconnect.
export function remember(more) {
  const first = more[0].number;
  const latest = more.at(-1).at;
  samples = [...samples.filter((sample) => sample.number < first), ...more].filter(({ at }) => latest - at <= SECONDS);
}

// [[at, value], ...] of one engine's figure; null where it was not known.
export const series = (engine, figure) => samples.map(({ at, engines }) => [at, engines[engine]?.[figure] ?? null]);

export function makeLine(label) {
  const [area, line] = [makeSvg("path", { class: "area" }), makeSvg("path", { class: "line" })];
  const attributes = { class: "spark", viewBox: `0 0 ${SECONDS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  return { element: makeSvg("svg", attributes, area, line), area, line, label };
}

// Scaled from 0 to the highest value, which is returned; null where none is known. Unknown values leave gaps.
export function drawLine(part, values, now, write) {
  const all = values.map(([, value]) => value).filter(known);
  const highest = all.length > 0 ? Math.max(...all) : null;
  const point = ([at, value]) => [SECONDS - (now - at), HEIGHT - 1 - ((HEIGHT - 3) * value) / (highest || 1)];
  const runs = [[]];
  for (const one of values) {
    if (known(one[1])) runs.at(-1).push(point(one).map((number) => number.toFixed(1)));
    else runs.push([]);
  }
  const drawn = runs.filter((run) => run.length > 0).map((run) => [run[0][0], run.map((place) => place.join(",")).join("L")]);
  setAttribute(part.line, "d", drawn.map(([, path]) => `M${path}${path.includes("L") ? "" : "h1"}`).join(""));
  setAttribute(part.area, "d", drawn.map(([begin, path]) => `M${begin},${HEIGHT}L${path}V${HEIGHT}Z`).join(""));
  const range = highest === null ? "not known" : `at most ${write(highest)}`;
  setAttribute(part.element, "aria-label", `${part.label} in the last five minutes: ${range}`);
  return highest;
}
