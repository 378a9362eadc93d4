// The memory of each device as a bar to scale, with the figures in a legend.

import { Keyed, make, setAttribute, setText } from "./dom.js";
import { gib, gibOf, known } from "./format.js";
import { commands, layout } from "./memory.js";

let context = null; // of the status being drawn
let devices = null;

export function drawDevices(place, status, colors) {
  context = { engines: status.engines, colors };
  if (devices?.place !== place) devices = new Keyed(place, build, update);
  devices.draw(status.devices, (device) => device.label);
}

function build(device) {
  const part = { about: make("span"), free: make("strong") };
  const title = make("p", "", { class: "between" }, make("span", "", {}, make("b", device.label), " ", part.about), part.free);
  const labels = make("div", "", { class: "labels", "aria-hidden": "true" });
  const segments = make("div", "", { class: "segments" });
  const legend = make("ul", "", { class: "legend" });
  part.over = make("div", "", { class: "over", title: "over the device's capacity" });
  part.limit = make("div", "", { class: "limit" });
  part.limitLabel = make("span", "limit", { class: "limit-label" });
  part.bar = make("div", "", { class: "gpu", role: "img" }, segments, part.over, part.limit);
  part.segments = new Keyed(segments, () => ({ element: make("div", "", {}, make("i"), make("u")) }), updateSegment);
  part.names = new Keyed(labels, ({ engine }) => ({ element: make("span", engine.name) }), updateName);
  part.rows = new Keyed(legend, buildRow, updateRow);
  const axis = make("div", "", { class: "axis gpu-axis", "aria-hidden": "true" }, part.limitLabel);
  part.element = make("div", "", { class: "device" }, title, labels, part.bar, axis, legend);
  return part;
}

function update(part, device) {
  const plan = layout(device, context.engines);
  const share = (bytes) => `${(100 * bytes) / plan.scale}%`;
  for (const one of plan.parts) Object.assign(one, { left: share(one.from), width: share(one.size) });
  setText(part.about, `${device.name}, ${gib(device.total_bytes)}`);
  setText(part.free, `${gib(device.free_bytes)} free`);
  part.segments.draw(plan.parts, ({ key }) => key);
  part.names.draw(plan.parts.filter(({ kind }) => kind === "engine"), ({ key }) => key);
  part.limit.style.left = share(device.limit_bytes);
  part.limitLabel.style.right = share(plan.scale - device.limit_bytes);
  part.over.hidden = plan.end <= device.total_bytes;
  part.over.style.left = share(device.total_bytes);
  const rows = [...plan.parts.map((one) => ({ key: one.key, mark: markOf(one), text: words(one) })),
    { key: "free", mark: "free", text: `free ${gib(device.free_bytes)}` },
    { key: "limit", mark: "mark-limit", text: `limit of all budgets ${gib(device.limit_bytes)}` }];
  if (!part.over.hidden) rows.push({ key: "over", mark: "over", text: `${gib(plan.end - device.total_bytes)} over capacity` });
  part.rows.draw(rows, ({ key }) => key);
  setAttribute(part.bar, "aria-label", spoken(device, plan));
}

function updateSegment({ element }, one) {
  setAttribute(element, "class", `segment ${one.kind === "engine" ? "engine " : ""}${markOf(one)}`);
  setAttribute(element, "title", words(one));
  Object.assign(element.style, { left: one.left, width: one.width });
  if (one.kind !== "engine") return;
  const [used, outline] = element.children;
  used.style.width = `${(100 * (one.engine.used_bytes ?? 0)) / one.size}%`;
  outline.style.width = `${(100 * one.engine.budget_bytes) / one.size}%`;
  outline.className = one.size > one.engine.budget_bytes ? "exceeded" : "";
}

function updateName({ element }, { left, width }) {
  Object.assign(element.style, { left, width });
}

function buildRow() {
  const part = { mark: make("b", "", { "aria-hidden": "true" }), text: make("span") };
  return { ...part, element: make("li", "", {}, part.mark, part.text) };
}

function updateRow(part, { mark, text }) {
  setAttribute(part.mark, "class", `swatch ${mark}`);
  setText(part.text, text);
}

// Classes of a segment, and of its swatch in the legend.
const markOf = (one) => (one.kind === "engine" ? `${context.colors.get(one.engine.name)} use-${one.use}` : one.kind);

function words({ kind, engine, use, processes, size, isKnown }) {
  if (kind === "reserved") return `reserved by the driver ${gib(size)}`;
  if (kind === "unnamed") return `others, not named by the driver ${gib(size)}`;
  if (kind === "other") {
    const figure = isKnown ? gib(size) : size ? `at least ${gib(size)}` : "use not known";
    if (processes.length > 1) return `${processes.length} others ${figure} (${commands(processes)})`;
    const [{ pid, user, command }] = processes;
    return [`pid ${pid}`, user, command, figure].filter(known).join(" ");
  }
  if (use === "none") return `${engine.name} not running, budget ${gib(engine.budget_bytes)}`;
  if (use === "unknown") return `${engine.name} ${gibOf(null, engine.budget_bytes)}, use not known`;
  const outside = engine.used_bytes - engine.budget_bytes;
  const more = outside >= 2 ** 26 ? `, ${gib(outside)} outside its budget` : "";
  return `${engine.name} ${gibOf(engine.used_bytes, engine.budget_bytes)}${more}`;
}

function spoken(device, plan) {
  const parts = [...plan.parts.filter(({ kind }) => kind === "engine").map(words), `others ${gib(plan.others)}`];
  if (plan.reserved) parts.push(`reserved ${gib(plan.reserved)}`);
  parts.push(`free ${gib(device.free_bytes)}`, `limit of all budgets ${gib(device.limit_bytes)}`);
  return `${device.label}, ${gib(device.total_bytes)}: ${parts.join("; ")}`;
}
