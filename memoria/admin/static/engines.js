// One card for each engine: its state, its figures, and what can be done with it.

import { UNKNOWN, count, duration, gib, make, milliseconds, percent, rate } from "./format.js";

const FIVE_MINUTES = 300;
const cards = new Map();
const history = new Map(); // engine -> [[at, requests per second], ...]

export function drawEngines(place, status, actions) {
  for (const engine of status.engines) {
    if (!cards.has(engine.name)) {
      cards.set(engine.name, build(engine, actions));
      place.append(cards.get(engine.name).element);
    }
    remember(engine, status.at);
    update(cards.get(engine.name), engine, status.at, actions.allowed());
  }
}

function build(engine, actions) {
  const parts = { state: make("span"), why: make("p", "", { class: "why quiet" }), figures: make("dl") };
  parts.kv = make("i");
  parts.path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  parts.spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  parts.spark.setAttribute("class", "spark");
  parts.spark.setAttribute("viewBox", `0 0 ${FIVE_MINUTES} 30`);
  parts.spark.setAttribute("preserveAspectRatio", "none");
  parts.spark.setAttribute("role", "img");
  parts.spark.append(parts.path);
  parts.buttons = ["start", "stop", "restart"].map((wish) => {
    const button = make("button", wish, { type: "button", "aria-label": `${wish} ${engine.name}` });
    button.addEventListener("click", () => actions.steer(engine.name, wish));
    return button;
  });
  const title = make("header", "", {}, make("h3", engine.name), parts.state);
  const models = make("div", engine.models.join(", "), { class: "quiet why" });
  const kv = make("div", "", { class: "kv" }, parts.kv);
  const bar = make("div", "", { class: "bar" }, ...parts.buttons);
  parts.element = make("article", "", { id: `engine-${engine.name}`, "aria-label": engine.name },
    title, models, parts.why, parts.figures, kv, parts.spark,
    make("div", "requests/s, five minutes", { class: "quiet small" }), bar);
  return parts;
}

function update(parts, engine, now, allowed) {
  const progress = engine.percent === null ? "" : ` ${engine.percent} %`;
  const phase = engine.phase && engine.state === "starting" ? `: ${engine.phase}${progress}` : "";
  parts.state.textContent = `${engine.state}${phase} ${duration(now - engine.since)}`;
  parts.state.className = `state ${engine.state}`;
  const retry = engine.retry_at === null ? "" : `; retry in ${duration(engine.retry_at - now)}`;
  const why = engine.detail ? [engine.detail + retry, engine.hint].filter(Boolean).join("; ") : "";
  parts.why.textContent = why || (engine.last_exit ? `last exit: ${engine.last_exit}` : "");
  const busy = engine.running === null ? UNKNOWN : `${engine.running} / ${engine.waiting}`;
  const rows = [
    ["memory", `${gib(engine.used_bytes).replace(" GiB", "")} of ${gib(engine.budget_bytes)}`],
    ["KV cache", percent(engine.kv_usage)],
    ["running / waiting", busy],
    ["requests/s", rate(engine.requests_per_second)],
    ["tokens/s", rate(engine.tokens_per_second)],
    ["restarts", count(engine.restarts)],
    ["TTFT p50 / p95", `${milliseconds(engine.ttft_p50)} / ${milliseconds(engine.ttft_p95)}`],
    ["total p50 / p95", `${milliseconds(engine.total_p50)} / ${milliseconds(engine.total_p95)}`],
    ["held here", count(engine.held)],
  ];
  parts.figures.replaceChildren(...rows.map(([name, value]) => make("div", "", {}, make("dt", name), make("dd", value))));
  parts.kv.style.width = `${100 * (engine.kv_usage ?? 0)}%`;
  drawSpark(parts, engine.name, now);
  const [start, stop, restart] = parts.buttons;
  const rests = ["stopped", "failed"].includes(engine.state);
  start.disabled = !allowed || !(rests || engine.state === "backoff");
  stop.disabled = !allowed || engine.state === "stopped";
  restart.disabled = !allowed || engine.state === "stopped";
  for (const button of parts.buttons) button.title = allowed ? "" : "an admin's key is needed";
}

function remember(engine, at) {
  const seen = history.get(engine.name) ?? [];
  seen.push([at, engine.requests_per_second ?? 0]);
  history.set(engine.name, seen.filter(([then]) => at - then <= FIVE_MINUTES));
}

function drawSpark(parts, name, now) {
  const seen = history.get(name);
  const highest = Math.max(1, ...seen.map(([, value]) => value));
  const points = seen.map(([at, value]) => `${(FIVE_MINUTES - (now - at)).toFixed(1)},${(28 - (26 * value) / highest).toFixed(1)}`);
  parts.path.setAttribute("d", `M${points.join("L")}`);
  parts.spark.setAttribute("aria-label", `requests per second in five minutes, at most ${rate(highest)}`);
}
