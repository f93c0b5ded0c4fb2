// The server: one function to ask it, which waits where it is busy and asks for the token where one is needed.

const TRIES = 6;
const LONGEST_WAIT = 30; // seconds

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  // Whether the same request may fare better later.
  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let library = null;
const hooks = { waiting: () => {}, token: async () => {} };

export const onWaiting = (hook) => (hooks.waiting = hook);
export const onToken = (hook) => (hooks.token = hook);
export const useLibrary = (name) => (library = name);

export function url(path, query = {}) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined));
  if (library) parameters.set("library", library);
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}

// Formats that no browser plays come as WAV.
export const audioURL = (id) => url(`api/audio/${encodeURIComponent(id)}`, { playable: 1 });
export const downloadURL = (id) => url(`api/audio/${encodeURIComponent(id)}`, { download: 1 });

export async function ask(path, { query, json, body, signal, quiet = false } = {}) {
  const options = { signal, body, method: json || body ? "POST" : "GET" };
  if (json) {
    options.body = JSON.stringify(json);
    options.headers = { "Content-Type": "application/json" };
  }
  for (let tried = 1; ; tried++) {
    const response = await send(url(path, query), options);
    const busy = response.status === 429 || response.status === 503;
    if (response.status === 401) {
      await hooks.token();
    } else if (busy && tried < TRIES) {
      const seconds = Math.min(Number(response.headers.get("Retry-After")) || tried, LONGEST_WAIT);
      if (!quiet) hooks.waiting(seconds);
      await pause(seconds * 1000, signal);
    } else {
      return read(response);
    }
  }
}

async function send(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer; see that “antiphon serve” is still running.", 0);
  }
}

async function read(response) {
  let answer = null;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && answer) return answer;
  throw new ApiError(answer?.error ?? `The server answered ${response.status} without saying why.`, response.status);
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("no longer wanted", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}

// The cookie that the server sets is what lets the player's own requests through; the page never keeps the token.
export async function giveToken(token) {
  await send(`?${new URLSearchParams({ token })}`, { redirect: "manual" });
  return (await send(url("api/stats"), {})).status !== 401;
}
