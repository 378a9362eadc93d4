// What an engine's budget holds, as planned and as measured: two bars on one scale, and a table of their figures.

import { make, setAttribute, setText } from "./dom.js";
import { UNKNOWN, gib, known } from "./format.js";

// In the order of the bars, so that the planned and the measured end of the KV cache lie above each other.
const TERMS = [
  { key: "weights", label: "weights" },
  { key: "graph", label: "CUDA graphs" },
  { key: "kv", label: "KV cache" },
  { key: "step", label: "one step" },
  { key: "context", label: "CUDA context" },
];
const SMALL = 2 ** 30; // bytes; less has two decimals, so that none reads 0.0

// Bytes from the left end. `error`: where the KV cache may end. Pure arithmetic.
export function layout(engine) {
  const plan = engine.memory_plan;
  const planned = TERMS.map(({ key }) => ({ key, size: Math.max(0, plan[`${key}_bytes`]) }));
  const inside = stacked(planned.slice(0, -1), 0);
  const context = stacked(planned.slice(-1), Math.max(engine.budget_bytes, end(inside)));
  const kv = inside.find(({ key }) => key === "kv");
  const half = plan.bar_bytes;
  const error = half > 0 ? { from: Math.max(0, kv.from + kv.size - half), size: 2 * half } : null;
  const measured = stacked(measuredOf(engine), 0);
  const scale = Math.max(engine.budget_bytes, end(context), end(measured), error ? error.from + error.size : 0);
  const rows = [[...inside, ...context], measured].map((parts) => parts.filter(({ size }) => size > 0));
  return { planned: rows[0], measured: rows[1], error, budget: engine.budget_bytes, over: Math.max(0, end(inside) - engine.budget_bytes), scale };
}

// vLLM's figures, and what else its processes use: a step, what stays, the context.
function measuredOf({ memory_plan: { measured }, used_bytes }) {
  const said = ["weights", "graph", "kv"].map((key) => ({ key, size: measured?.[`${key}_bytes`] ?? 0 }));
  const rest = known(used_bytes) ? Math.max(0, used_bytes - sum(said)) : 0;
  return [...said, { key: "rest", size: rest }];
}

export function makeBudget(color) {
  const part = { verdict: make("span"), planned: makeBar(), measured: makeBar(), mark: make("span") };
  const head = make("figcaption", "", { class: "between" }, make("span", "memory plan", { class: "quiet" }), part.verdict);
  part.error = make("i", "", { class: "error" });
  part.planned.element.append(part.error);
  const axis = make("div", "", { class: "axis", "aria-hidden": "true" }, part.mark);
  const bars = make("div", "", { class: "bars" }, label("planned"), part.planned.element, label("measured"), part.measured.element, label(""), axis);
  const header = make("tr", "", {}, make("td", "GiB"), ...["planned", "measured"].map((text) => make("th", text, { scope: "col" })));
  part.rows = TERMS.map(({ key, label: text }) => makeRow(key, text));
  part.total = makeRow("", "in all");
  const body = make("tbody", "", {}, ...[...part.rows, part.total].map(({ element }) => element));
  part.element = make("figure", "", { class: `budget ${color}`, "aria-label": "memory plan" }, head, bars,
    make("details", "", {}, make("summary", "Figures"), make("table", "", {}, make("thead", "", {}, header), body)));
  return part;
}

const label = (text) => make("span", text, { class: "quiet", "aria-hidden": "true" });

function makeBar() {
  const [parts, budget] = [make("div"), make("u")];
  return { parts, budget, element: make("div", "", { class: "holding", role: "img" }, parts, budget) };
}

function makeRow(key, text) {
  const part = { key, label: make("span", text), planned: make("td"), measured: make("td") };
  const swatch = make("b", "", { class: `swatch holds-${key}`, "aria-hidden": "true" });
  part.element = make("tr", "", {}, make("th", "", { scope: "row" }, ...(key ? [swatch] : []), part.label), part.planned);
  if (key !== "context") part.element.append(part.measured); // its figure is in the row above
  return part;
}

export function updateBudget(part, engine) {
  part.element.hidden = !known(engine.memory_plan);
  if (part.element.hidden) return;
  const plan = layout(engine);
  const { bar_bytes, context_bytes, doubtful, fits, measured } = engine.memory_plan;
  const share = (bytes) => `${(100 * bytes) / plan.scale}%`;
  const error = bar_bytes > 0 ? ` ± ${bare(bar_bytes)}` : "";
  setText(part.verdict, fits ? `${doubtful ? "doubtful" : "fits"}${error && `,${error} GiB`}` : plan.over > 0 ? `${figure(plan.over)} over its budget` : "KV cache too small");
  part.verdict.className = fits ? (doubtful ? "warn" : "") : "bad";
  for (const [bar, parts, name] of [[part.planned, plan.planned, "planned"], [part.measured, plan.measured, "measured"]]) {
    bar.parts.replaceChildren(...parts.map((one) => make("b", "", { class: `holds-${one.key}` })));
    parts.forEach(({ from, size }, index) => Object.assign(bar.parts.children[index].style, { left: share(from), width: share(size) }));
    bar.budget.style.width = share(plan.budget);
    setAttribute(bar.element, "aria-label", spoken(name, parts, engine));
  }
  part.error.hidden = plan.error === null;
  if (plan.error) Object.assign(part.error.style, { left: share(plan.error.from), width: share(plan.error.size) });
  setText(part.mark, `budget ${gib(plan.budget)}`);
  part.mark.style.right = share(plan.scale - plan.budget);
  for (const row of part.rows) {
    const planned = engine.memory_plan[`${row.key}_bytes`];
    setText(row.planned, bare(planned) + (row.key === "kv" || row.key === "step" ? error : ""));
    setText(row.measured, row.key === "step" ? restOf(plan, engine) : bare(measured?.[`${row.key}_bytes`]));
    row.measured.rowSpan = row.key === "step" && context_bytes > 0 ? 2 : 1;
    if (row.key === "step") setText(row.label, nameOf("step", engine));
    row.element.hidden = planned === 0 && !measured?.[`${row.key}_bytes`];
  }
  setText(part.total.planned, bare(sum(plan.planned)));
  setText(part.total.measured, bare(engine.used_bytes));
}

function nameOf(key, engine) {
  if (key === "step" && engine.device === "host") return "libraries";
  return key === "rest" ? "everything else" : TERMS.find((term) => term.key === key).label;
}

function restOf({ measured }, engine) {
  const rest = measured.find(({ key }) => key === "rest");
  return rest && engine.memory_plan.measured ? `${bare(rest.size)}${engine.memory_plan.context_bytes > 0 ? " together" : ""}` : UNKNOWN;
}

function spoken(name, parts, engine) {
  const said = parts.map(({ key, size }) => `${nameOf(key, engine)} ${figure(size)}`).join("; ");
  return `${name}, budget ${gib(engine.budget_bytes)}: ${said || "nothing known"}`;
}

const bare = (bytes) => (known(bytes) ? (bytes / 2 ** 30).toFixed(Math.abs(bytes) < SMALL ? 2 : 1) : UNKNOWN);
const figure = (bytes) => `${bare(bytes)} GiB`;

function stacked(parts, start) {
  let from = start;
  return parts.map((part) => {
    const placed = { ...part, from };
    from += part.size;
    return placed;
  });
}

const sum = (parts) => parts.reduce((total, { size }) => total + size, 0);
const end = (parts) => (parts.length > 0 ? parts.at(-1).from + parts.at(-1).size : 0);
