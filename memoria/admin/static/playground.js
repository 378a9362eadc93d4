// The playground: a streamed completion, or a request to a pooling engine; and the same as a curl command.

import { routesOf, showStream } from "./answers.js";
import { byId, make, setText } from "./dom.js";
import { ask, key } from "./memoria.js";

const field = (name) => byId(`try-${name}`);
const note = (text) => setText(field("note"), text);
let models = new Map(); // name -> its routes
let offered = "";
let sending = null;

export function offerModels(engines) {
  models = new Map(engines.flatMap((engine) => engine.models.map((model) => [model, routesOf(engine)])));
  const now = JSON.stringify([...models].map(([model, routes]) => [model, routes.map(({ path }) => path)]));
  if (now === offered) return;
  offered = now;
  options(field("model"), [...models.keys()]);
  offerRoutes();
}

function offerRoutes() {
  options(field("route"), (models.get(field("model").value) ?? []).map(({ path }) => path));
  offerFields();
}

function offerFields() {
  const { stream = false, query = false } = route() ?? {};
  field("tokens").disabled = !stream;
  setText(field("label"), query ? "Text: a query, then a document on each line" : "Text");
}

// Keeps the choice where it still exists.
function options(select, values) {
  const before = select.value;
  select.replaceChildren(...values.map((value) => make("option", value, { value })));
  if (values.includes(before)) select.value = before;
}

const route = () => models.get(field("model").value)?.find(({ path }) => path === field("route").value);

function body() {
  const text = field("text").value;
  return { model: field("model").value, ...route().body(text, Number(field("tokens").value) || 64) };
}

async function send() {
  const { path, stream, show } = route();
  const began = performance.now();
  const passed = () => `${Math.round(performance.now() - began)} ms`;
  field("answer").replaceChildren();
  sending = new AbortController();
  busy(true);
  note("sent");
  try {
    const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body()) };
    const answer = await ask(path.slice(1), { ...request, signal: sending.signal });
    if (stream) {
      note(await showStream(answer, field("answer"), passed));
    } else {
      const [text, what] = show(await answer.json());
      field("answer").textContent = text;
      note(`${what} in ${passed()}`);
    }
  } catch (error) {
    note(sending.signal.aborted ? `stopped after ${passed()}` : error.message);
  } finally {
    busy(false);
  }
}

function busy(is) {
  field("send").disabled = is;
  field("stop").disabled = !is;
}

function curl() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const { path, stream } = route();
  const options = `${stream ? "-N " : ""}${key.get() ? "-H \"Authorization: Bearer $KEY\" " : ""}`;
  return `curl ${options}${quoted(new URL(path.slice(1), location.href).href)} --json ${quoted(JSON.stringify(body()))}`;
}

field("model").addEventListener("change", offerRoutes);
field("route").addEventListener("change", offerFields);
byId("try").addEventListener("submit", (event) => {
  event.preventDefault();
  if (route()) send();
});
field("stop").addEventListener("click", () => sending?.abort());
field("curl").addEventListener("click", async () => {
  if (!route()) return;
  field("answer").textContent = curl(); // to copy by hand: without https there is no clipboard
  note("");
  await navigator.clipboard?.writeText(field("answer").textContent).then(() => note("copied"), () => {});
});
