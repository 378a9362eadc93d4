// Requests to memoria, with the key if there is one. The key stays in this tab.

export const key = {
  get: () => sessionStorage.getItem("key") || "",
  set: (value) => (value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key")),
};

// Throws an Error with memoria's message, and with a `status` where memoria answered.
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const message = await answer.json().then((body) => body.error.message, () => `HTTP ${answer.status}`);
  throw Object.assign(new Error(message), { status: answer.status });
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

// Server-sent events as [kind, data], by fetch: an EventSource cannot send a key.
export async function* events(answer) {
  let kind = "message";
  for await (const line of lines(answer)) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) yield [kind, line.slice(6)];
    else if (line === "") kind = "message";
  }
}

// Ends early with the signal.
export const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal?.addEventListener("abort", () => {
    clearTimeout(timer);
    resolve();
  }, { once: true });
});
