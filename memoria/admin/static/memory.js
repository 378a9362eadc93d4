// A device's memory as segments of a bar, in bytes from its left end. Pure arithmetic.
//
// Budgets first, each as wide as the budget or as the engine's use where that is more (a CUDA context lies
// outside the budget); then the memory of others, then the driver's reserve. A sum over the device's capacity is
// drawn beyond its end, so that everything stays to scale.

import { known } from "./format.js";

const OWN_SEGMENT = 0.02; // of the device: smaller others are grouped
const MOST_SEGMENTS = 4;
const MIN_SHOWN = 2 ** 26; // bytes

export function layout(device, engines) {
  const here = engines.filter((engine) => engine.device === device.label);
  const others = othersOf(device, here);
  const reserved = reservedOf(device);
  const parts = [
    ...here.map((engine) => ({
      kind: "engine", key: `engine ${engine.name}`, engine, size: Math.max(engine.budget_bytes, engine.used_bytes ?? 0),
      use: engine.pid === null ? "none" : known(engine.used_bytes) ? "known" : "unknown",
    })),
    ...others.parts,
    ...(reserved >= MIN_SHOWN ? [{ kind: "reserved", key: "reserved", size: reserved }] : []),
  ];
  let from = 0;
  for (const part of parts) {
    part.from = from;
    from += part.size;
  }
  return { parts, others: others.total, reserved, end: from, scale: Math.max(device.total_bytes, from) };
}

// As in `memoria top` and /metrics: memory used by no engine; null where some engine's use is not known. Large
// processes get a segment each, small ones share one.
function othersOf(device, here) {
  const running = here.filter((engine) => engine.pid !== null);
  const isKnown = known(device.used_bytes) && running.every((engine) => known(engine.used_bytes));
  const total = isKnown ? Math.max(0, device.used_bytes - sum(running)) : null;
  const sorted = [...device.others].sort((a, b) => (b.used_bytes ?? 0) - (a.used_bytes ?? 0));
  const isLarge = (other) => (other.used_bytes ?? 0) >= OWN_SEGMENT * device.total_bytes;
  const large = sorted.filter(isLarge).slice(0, MOST_SEGMENTS);
  const small = sorted.slice(large.length);
  const groups = [...large.map((one) => [one]), ...(small.length > 0 ? [small] : [])];
  const parts = groups.map((processes) => ({
    kind: "other", key: processes === small && small.length > 1 ? "small" : `pid ${processes[0].pid}`,
    processes, size: sum(processes), isKnown: processes.every((one) => known(one.used_bytes)),
  }));
  const unnamed = (total ?? 0) - sum(device.others);
  if (unnamed >= MIN_SHOWN) parts.push({ kind: "unnamed", key: "unnamed", size: unnamed });
  return { total, parts };
}

function reservedOf({ total_bytes, used_bytes, free_bytes }) {
  return known(used_bytes) && known(free_bytes) ? Math.max(0, total_bytes - used_bytes - free_bytes) : 0;
}

// "python ×5, Xorg", the most frequent first.
export function commands(processes) {
  const counts = new Map();
  for (const { command } of processes) {
    const name = (command ?? "?").split(" ")[0].split("/").at(-1);
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const names = [...counts].sort((a, b) => b[1] - a[1]).map(([name, times]) => (times > 1 ? `${name} ×${times}` : name));
  return names.slice(0, 3).join(", ") + (names.length > 3 ? ", …" : "");
}

const sum = (users) => users.reduce((total, user) => total + (user.used_bytes ?? 0), 0);
