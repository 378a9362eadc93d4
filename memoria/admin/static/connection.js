// The connection to memoria: reads the page's rights, follows the events, reconnects when they fall silent.
//
// A dead connection may never report it, so silence counts as its end. A hidden tab holds no connection: a
// browser has six for all of its tabs together.

import { ask, events, pause } from "./memoria.js";

const SILENCE = 6; // seconds; memoria sends a status every two
const LONGEST_WAIT = 15; // seconds between two attempts
let connection = new AbortController();

// Connects again. Calls `on.rights(rights)`, `on.open(signal)` before the first event, `on.event(kind, data)` and
// `on.lost()`; the `signal` ends with the stream. Without the right `look` nothing follows until the next `connect`.
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
      notify(on.rights, rights);
      if (!rights.look.allowed) return;
      const answer = await ask("admin/events?history=true", { signal: stream.signal });
      notify(on.open, stream.signal);
      for await (const [kind, data] of events(answer)) {
        clearTimeout(silence);
        silence = watch();
        wait = 0.5;
        notify(on.event, kind, JSON.parse(data));
      }
    } catch {
      // Unreachable, cut off, silent, or no longer allowed: the next attempt shows which.
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      end();
    }
    if (signal.aborted) return;
    notify(on.lost);
    await pause(wait * (0.75 + Math.random() / 2), signal); // not all pages at the same moment
  }
}

// An error in drawing must not end the connection.
function notify(listener, ...facts) {
  try {
    listener(...facts);
  } catch (error) {
    reportError(error);
  }
}
