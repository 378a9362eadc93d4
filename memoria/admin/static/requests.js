// The most recent requests, newest first.

import { may, whyNot } from "./access.js";
import { byId, make, setText } from "./dom.js";
import { UNKNOWN, clock, count, known, milliseconds } from "./format.js";
import { ask, pause } from "./memoria.js";

const KEPT = 100;
const EVERY = 1; // seconds

// Runs until the signal.
export async function watchRequests(signal) {
  let last = 0;
  byId("requests").replaceChildren();
  note(may("logs") ? "none yet" : whyNot("logs", "Reading requests"));
  while (may("logs") && !signal.aborted) {
    try {
      const { requests } = await (await ask(`admin/requests?limit=${KEPT}&after=${last}`, { signal })).json();
      if (requests.length > 0) note("");
      byId("requests").prepend(...requests.map(row).reverse());
      while (byId("requests").childElementCount > KEPT) byId("requests").lastElementChild.remove();
      last = requests.at(-1)?.number ?? last;
    } catch (error) {
      if (error.status) return note(error.message);
    }
    await pause(EVERY, signal);
  }
}

function note(text) {
  setText(byId("requests-none"), text);
  byId("requests-none").hidden = text === "";
  byId("requests").parentElement.hidden = text !== "";
}

function row(request) {
  const tokens = known(request.prompt_tokens) ? `${count(request.prompt_tokens)} → ${count(request.completion_tokens)}` : UNKNOWN;
  const route = make("td", (request.route ?? UNKNOWN) + (request.replays ? " replayed" : ""), {},
    ...(request.aborted ? [" ", make("span", "aborted", { class: "bad" })] : []));
  const figures = [milliseconds(request.first_byte_s), milliseconds(request.duration_s), tokens, request.key ?? UNKNOWN];
  return make("tr", "", {}, make("td", clock(request.at)),
    make("td", String(request.status), request.status >= 400 ? { class: "bad" } : {}),
    make("td", request.engine ?? UNKNOWN), route, ...figures.map((text) => make("td", text)));
}
