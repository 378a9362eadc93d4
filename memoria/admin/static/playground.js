// A small playground: a completion, streamed, or an embedding; and the same as a curl command.

import { ask, events } from "./memoria.js";
import { make } from "./format.js";

const ROUTES = {
  generate: ["/v1/completions", "/v1/chat/completions"],
  pooling: ["/v1/embeddings"],
};
const field = (name) => document.getElementById(`try-${name}`);
let runners = new Map();
let sending = null;

export function offerModels(engines) {
  const found = new Map(engines.flatMap((engine) => engine.models.map((model) => [model, engine.runner])));
  if (found.size === runners.size) return;
  runners = found;
  field("model").replaceChildren(...[...found.keys()].map((model) => make("option", model, { value: model })));
  offerRoutes();
}

function offerRoutes() {
  const routes = ROUTES[runners.get(field("model").value)] ?? [];
  field("route").replaceChildren(...routes.map((route) => make("option", route, { value: route })));
  field("tokens").disabled = routes === ROUTES.pooling;
}

function request() {
  const [model, route, text] = ["model", "route", "text"].map((name) => field(name).value);
  const max_tokens = Number(field("tokens").value) || 64;
  if (route === "/v1/embeddings") return [route, { model, input: text }];
  if (route === "/v1/completions") return [route, { model, prompt: text, max_tokens, stream: true }];
  return [route, { model, messages: [{ role: "user", content: text }], max_tokens, stream: true }];
}

async function send() {
  const [route, body] = request();
  const answerPlace = field("answer");
  answerPlace.textContent = "";
  const began = performance.now();
  const passed = () => `${Math.round(performance.now() - began)} ms`;
  sending = new AbortController();
  field("send").disabled = true;
  field("stop").disabled = false;
  note("sent");
  try {
    const headers = { "content-type": "application/json" };
    const answer = await ask(route.slice(1), { method: "POST", headers, body: JSON.stringify(body), signal: sending.signal });
    if (body.stream) await stream(answer, answerPlace, passed);
    else embedding(await answer.json(), answerPlace, passed);
  } catch (error) {
    note(sending.signal.aborted ? `stopped after ${passed()}` : error.message);
  } finally {
    field("send").disabled = false;
    field("stop").disabled = true;
  }
}

async function stream(answer, place, passed) {
  let first = null;
  let pieces = 0;
  for await (const [, data] of events(answer)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    first ??= passed();
    pieces += 1;
    const choice = event.choices[0];
    place.textContent += choice?.text ?? choice?.delta?.content ?? "";
  }
  note(`done in ${passed()}, the first of ${pieces} pieces after ${first ?? passed()}`);
}

function embedding(body, place, passed) {
  const vector = body.data[0].embedding;
  place.textContent = `[${vector.slice(0, 8).map((number) => number.toFixed(4)).join(", ")}${vector.length > 8 ? ", …" : ""}]`;
  note(`${vector.length} dimensions in ${passed()}`);
}

function curl() {
  const [route, body] = request();
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const open = "-H \"Authorization: Bearer $KEY\" ";
  const key = sessionStorage.getItem("key") ? open : "";
  return `curl ${body.stream ? "-N " : ""}${key}${quoted(new URL(route.slice(1), location.href).href)} --json ${quoted(JSON.stringify(body))}`;
}

const note = (text) => { field("note").textContent = text; };

field("model").addEventListener("change", offerRoutes);
document.getElementById("try").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
field("stop").addEventListener("click", () => sending?.abort());
field("curl").addEventListener("click", async () => {
  field("answer").textContent = curl(); // to copy by hand where there is no clipboard, as without https
  note("");
  await navigator.clipboard?.writeText(field("answer").textContent).then(() => note("copied"), () => {});
});
