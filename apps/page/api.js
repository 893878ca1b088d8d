// The server: OpenAI's chat completions, and what the dashboard shows.

/** What the server refused or could not do, in one sentence. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const KEY = "edgert.key";

/** The server's key, if it wants one: a desktop window gets it behind the # of its address, which no server sees. */
export function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
}

export const useKey = (key) => sessionStorage.setItem(KEY, key);

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the number has to do */ }
  throw new ApiError(message, response.status);
}

export const status = async () => (await send("/edgert/status")).json();

const post = (path, body, signal) => send(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
});

/** Load the model again with another budget. bytes: a whole number of MiB. */
export const setBudget = (bytes) => post("/edgert/budget", { memory: `${bytes >> 20}M` });

/** The models that may be chosen; the servers of `edgert web` and `edgert app` have such a list. */
export const models = async () => (await (await send("/edgert/models")).json()).models;

export const choose = (id) => post("/edgert/models", { id });

/** End what is being fetched, and forget what went wrong. */
export const cancelChoice = () => post("/edgert/models/cancel", {});

/**
 * Ask for an answer. Yields { thought }, { text }, { finish } and { usage } as they come. Raises ApiError, and AbortError where
 * `signal` ends it.
 */
export async function* complete(body, signal) {
  const response = await post("/v1/chat/completions",
    { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  let done = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  if (!done) throw new ApiError("The answer broke off: the server closed the connection.");
}

/** The data of server-sent events; comments (pings) are left out. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
