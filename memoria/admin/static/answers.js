// Requests of the playground, and how their answers are shown.

import { make } from "./dom.js";
import { events } from "./memoria.js";

// The first line is the query, every other line a document.
const query = (text) => text.split("\n")[0];
const documents = (text) => text.split("\n").slice(1).filter((line) => line.trim() !== "");

const COMPLETION = {
  path: "/v1/completions",
  stream: true,
  body: (text, max_tokens) => ({ prompt: text, max_tokens, stream: true }),
};
const CHAT = {
  path: "/v1/chat/completions",
  stream: true,
  body: (text, max_tokens) => ({ messages: [{ role: "user", content: text }], max_tokens, stream: true }),
};
const EMBEDDING = { path: "/v1/embeddings", body: (text) => ({ input: text }), show: showEmbedding };
const CLASSIFY = {
  path: "/classify",
  body: (text) => ({ input: text }),
  show: ({ data }) => [data.map(({ label, probs }) => `${label} ${Math.max(...probs).toFixed(4)}`).join("\n"), "classified"],
};
const SCORE = {
  path: "/score",
  query: true,
  body: (text) => ({ text_1: query(text), text_2: documents(text) }),
  show: ({ data }) => [data.map(({ score }) => score.toFixed(4)).join("\n"), "scored"],
};
const RERANK = {
  path: "/rerank",
  query: true,
  body: (text) => ({ query: query(text), documents: documents(text) }),
  show: ({ results }) => [results.map((one) => `${one.relevance_score.toFixed(4)}  ${one.document.text}`).join("\n"), "ranked"],
};

// `tasks`: as reported by vLLM.
export function routesOf({ runner, tasks = [] }) {
  if (runner === "generate") return [COMPLETION, CHAT];
  const found = [...(tasks.includes("embed") ? [EMBEDDING] : []), ...(tasks.includes("classify") ? [RERANK, SCORE, CLASSIFY] : [])];
  return found.length > 0 ? found : [EMBEDDING];
}

function showEmbedding(body) {
  const vector = body.data[0].embedding;
  const start = vector.slice(0, 8).map((number) => number.toFixed(4)).join(", ");
  return [`[${start}${vector.length > 8 ? ", …" : ""}]`, `${vector.length} dimensions`];
}

// Shows a streamed answer as it arrives; returns a note. Throws on an error sent by the engine, and where the
// stream ends without its end mark.
export async function showStream(answer, place, passed) {
  let first = null;
  let chunks = 0;
  for await (const [, data] of events(answer)) {
    if (data === "[DONE]") return `done in ${passed()}, first of ${chunks} chunks after ${first ?? passed()}`;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    first ??= passed();
    chunks += 1;
    const { text, delta } = event.choices[0] ?? {};
    append(place, delta?.reasoning ?? delta?.reasoning_content, "reasoning");
    append(place, text ?? delta?.content, "content");
  }
  throw new Error(`the answer broke off after ${passed()} and ${chunks} chunks: it has no end mark`);
}

function append(place, text, kind) {
  if (!text) return;
  if (place.lastElementChild?.className !== kind) place.append(make("span", "", { class: kind }));
  place.lastElementChild.append(text);
}
