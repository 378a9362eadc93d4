// One card for each engine: state, figures, controls.

import { makeBudget, updateBudget } from "./budget.js";
import { makeControls, updateControls } from "./control.js";
import { Keyed, byId, make, setText } from "./dom.js";
import { UNKNOWN, count, duration, gibOf, known, milliseconds, percent, rate } from "./format.js";
import { drawLine, makeLine, series } from "./history.js";
import { STATES } from "./states.js";

// The large figures, each with its last five minutes. A pooling engine neither generates nor streams.
const LARGE = [
  { figure: "requests_per_second", label: "requests/s", write: rate, about: "of the last minute" },
  { figure: "tokens_per_second", label: "tokens/s", write: rate, about: "generated", runner: "generate" },
  { figure: "ttft_p95", label: "TTFT p95", write: milliseconds, about: "time to the first byte of the answer, of the last minute", runner: "generate" },
  { figure: "total_p95", label: "answer p95", write: milliseconds, about: "time to the last byte of the answer, of the last minute", runner: "pooling" },
];
const SMALL = [ // label, format, runner
  ["in the engine", (e) => (known(e.running) ? `${count(e.running)} running, ${count(e.waiting)} waiting` : UNKNOWN)],
  ["queued in memoria", (e) => count(e.held)],
  ["TTFT p50", (e) => milliseconds(e.ttft_p50), "generate"],
  ["answer p50 / p95", (e) => `${milliseconds(e.total_p50)} / ${milliseconds(e.total_p95)}`],
  ["memory", (e) => gibOf(e.used_bytes, e.budget_bytes)],
  ["restarts", (e) => count(e.restarts)],
];
let context = null; // of the status being drawn
let cards = null;

export function drawEngines(status, colors, actions) {
  context = { now: status.at, colors, actions };
  cards ??= new Keyed(byId("engines"), build, update);
  cards.draw(status.engines, (engine) => `${engine.name} ${engine.runner}`);
}

function build(engine) {
  const { actions, colors } = context;
  const part = { phase: make("span"), since: make("span", "", { class: "quiet" }) };
  part.state = make("p", "", { class: "state" }, make("i", "", { "aria-hidden": "true" }), part.phase, part.since);
  part.models = make("p", "", { class: "models quiet" });
  part.why = make("p", "", { class: "why" });
  part.hint = make("p", "", { class: "why quiet" });
  const has = (runner) => runner === undefined || runner === engine.runner;
  part.large = LARGE.filter(({ runner }) => has(runner)).map(buildLarge);
  part.kv = buildMeter();
  part.budget = makeBudget(colors.get(engine.name));
  part.small = SMALL.filter(([, , runner]) => has(runner)).map(([label, write]) => ({ write, value: make("dd"), label: make("dt", label) }));
  part.controls = makeControls(engine.name, actions.control);
  const swatch = make("b", "", { class: `swatch ${colors.get(engine.name)}`, "aria-hidden": "true" });
  part.element = make("article", "", { id: `engine-${engine.name}`, "aria-label": engine.name },
    make("header", "", {}, make("h3", "", {}, swatch, engine.name), part.state), part.models, part.why, part.hint,
    make("div", "", { class: "large" }, ...part.large.map(({ element }) => element)), part.kv.element, part.budget.element,
    make("dl", "", {}, ...part.small.map(({ label, value }) => make("div", "", {}, label, value))), part.controls.element);
  return part;
}

function buildLarge({ figure, label, write, about }) {
  const [value, scale, line] = [make("strong"), make("span"), makeLine(label)];
  const head = make("div", "", { class: "between" }, make("span", label, { class: "quiet" }), value);
  const foot = make("div", "", { class: "between axis", "aria-hidden": "true" }, make("span", "5 min"), scale);
  return { figure, write, value, scale, line, element: make("div", "", { title: about }, head, line.element, foot) };
}

function buildMeter() {
  const part = { text: make("span"), fill: make("i") };
  const head = make("div", "", { class: "between" }, make("span", "KV cache", { class: "quiet" }), part.text);
  part.element = make("div", "", { class: "meter" }, head, make("div", "", { class: "track" }, part.fill));
  return part;
}

function update(part, engine) {
  const { now, actions } = context;
  const progress = known(engine.percent) ? ` ${engine.percent} %` : "";
  setText(part.phase, engine.phase && engine.state === "starting" ? `${engine.state}: ${engine.phase}${progress}` : engine.state === "fetching" ? engine.state + progress : engine.state);
  setText(part.since, known(engine.retry_at) ? `retry in ${duration(engine.retry_at - now)}` : duration(now - engine.since));
  part.state.className = `state ${STATES[engine.state].tone}`;
  part.state.dataset.state = engine.state;
  setText(part.models, engine.models.join(", "));
  const last = engine.last_exit ? `last exit: ${engine.last_exit}` : "";
  setText(part.why, engine.detail || last);
  part.why.classList.toggle("quiet", !engine.detail);
  setText(part.hint, (engine.detail && engine.hint) || "");
  for (const large of part.large) {
    setText(large.value, large.write(engine[large.figure]));
    const highest = drawLine(large.line, series(engine.name, large.figure), now, large.write);
    setText(large.scale, highest === null ? "" : `max ${large.write(highest)}`);
  }
  const tokens = known(engine.kv_tokens) ? ` of ${count(engine.kv_tokens)} tokens` : "";
  setText(part.kv.text, percent(engine.kv_usage) + tokens);
  part.kv.element.classList.toggle("unknown", !known(engine.kv_usage));
  part.kv.fill.style.width = known(engine.kv_usage) ? `${100 * engine.kv_usage}%` : "0";
  updateBudget(part.budget, engine);
  for (const { write, value } of part.small) setText(value, write(engine));
  updateControls(part.controls, engine, actions.allowed);
}
