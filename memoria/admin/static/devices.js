// The memory of each device as a bar: budgets in outline, what is used of them solid, others hatched.

import { gib, make } from "./format.js";

export function drawDevices(place, status, colors) {
  place.replaceChildren(...status.devices.map((device) => draw(device, status.engines, colors)));
}

function draw(device, engines, colors) {
  const here = engines.filter((engine) => engine.device === device.label);
  const width = (bytes) => `${(100 * bytes) / device.total_bytes}%`;
  const bar = make("div", "", { class: "gpu", role: "img", "aria-label": spoken(device, here) });
  const legend = make("ul", "", { class: "legend" });
  for (const engine of here) {
    const color = `e${colors.get(engine.name)}`;
    const used = make("i");
    used.style.width = `${Math.min(100, (100 * (engine.used_bytes ?? 0)) / engine.budget_bytes)}%`;
    const share = make("div", "", { class: `share ${color}` }, used);
    share.style.width = width(engine.budget_bytes);
    bar.append(share);
    const figures = `${engine.name} ${gib(engine.used_bytes)} of ${gib(engine.budget_bytes)}`;
    legend.append(make("li", "", {}, make("b", "", { class: color }), figures));
  }
  for (const other of device.others) {
    const share = make("div", "", { class: "others", title: `pid ${other.pid} ${other.command ?? ""}` });
    share.style.width = width(other.used_bytes ?? 0);
    bar.append(share);
    const owner = [`pid ${other.pid}`, other.user, gib(other.used_bytes)].filter(Boolean).join(" ");
    legend.append(make("li", "", {}, make("b", "", { class: "others" }), owner));
  }
  const limit = make("div", "", { class: "limit", title: `limit ${gib(device.limit_bytes)}` });
  limit.style.left = width(device.limit_bytes);
  bar.append(limit);
  legend.append(make("li", "", {}, make("b", "", { class: "free" }), `free ${gib(device.free_bytes)}`));
  const title = make("p", `${device.label}  ${device.name}  ${gib(device.total_bytes)}`);
  return make("div", "", { class: "device" }, title, bar, legend);
}

function spoken(device, engines) {
  const shares = engines.map((engine) => `${engine.name} uses ${gib(engine.used_bytes)} of ${gib(engine.budget_bytes)}`);
  return `${device.label}: ${shares.join(", ")}; free ${gib(device.free_bytes)} of ${gib(device.total_bytes)}`;
}
