// The connection to memoria: asks what may be seen, follows the events, comes back when they fall silent.
//
// One that says nothing may be dead without knowing it, so silence counts as its end. A tab that nobody sees
// holds no connection: a browser has six for all of its tabs together.

import { ask, events, pause } from "./memoria.js";

const SILENCE = 6; // seconds; memoria says something every two
const LONGEST_WAIT = 15; // seconds between two tries
let connection = new AbortController();

// Anew. `on.rights(rights)`, `on.open(signal)` before the first event, `on.event(kind, data)`, `on.lost()`. The
// `signal` ends with the stream. Without the right to look nothing follows until the next `connect`.
export function connect(on) {
  connection.abort();
  connection = new AbortController();
  if (!document.hidden) keep(on, connection.signal);
}

async function keep(on, signal) {
  for (let wait = 1; !signal.aborted; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    const stream = new AbortController();
    const end = () => stream.abort();
    const watch = () => setTimeout(end, SILENCE * 1000);
    signal.addEventListener("abort", end);
    let silence = watch();
    try {
      const rights = await (await ask("admin/access", { signal: stream.signal })).json();
      told(on.rights, rights);
      if (!rights.look.allowed) return;
      const answer = await ask("admin/events?history=true", { signal: stream.signal });
      told(on.open, stream.signal);
      for await (const [kind, data] of events(answer)) {
        clearTimeout(silence);
        silence = watch();
        wait = 0.5;
        told(on.event, kind, JSON.parse(data));
      }
    } catch {
      // Not reached, cut off, fallen silent, or no longer allowed: the next try tells which.
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      end();
    }
    if (signal.aborted) return;
    told(on.lost);
    await pause(wait * (0.75 + Math.random() / 2), signal); // not all pages at the same moment
  }
}

// A mistake in drawing is no mistake of the connection's.
function told(listener, ...facts) {
  try {
    listener(...facts);
  } catch (error) {
    reportError(error);
  }
}
