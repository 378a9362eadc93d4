// Asking memoria: with the key, if there is one. The key stays in this tab.

export const key = {
  get: () => sessionStorage.getItem("key") || "",
  set: (value) => (value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key")),
};

// Throws an Error with memoria's own words.
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const error = new Error(await answer.json().then((body) => body.error.message, () => `HTTP ${answer.status}`));
  error.status = answer.status;
  throw error;
}

export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

// Server-sent events, by fetch: an EventSource cannot send a key.
export async function* events(answer) {
  let kind = "message";
  for await (const line of lines(answer)) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) yield [kind, line.slice(6)];
    else if (line === "") kind = "message";
  }
}

export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
