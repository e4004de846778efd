// The native interface: requests relative to the page, so any root path will do, and errors with their parts.

/** What the server refused, in the parts of its `UserError`. */
export class Refusal extends Error {
  constructor(status, error = {}) {
    super(error.message ?? `The server answered ${status}`);
    this.status = status;
    this.field = error.field ?? null;
    this.rule = error.rule ?? null;
    this.fix = error.fix ?? null;
    this.where = error.where ?? null;
  }

  /** One paragraph for people. */
  get text() {
    return [this.message, this.rule, this.fix].filter(Boolean).map((part) => part.replace(/\.$/, "")).join(". ") + ".";
  }
}

/** Words for any error. */
export function wordsOf(error) {
  if (error instanceof Refusal) return error.text;
  return error instanceof TypeError ? "The server does not answer. Is it still running?" : String(error.message ?? error);
}

/** An address of the server, whatever path the pages are served under. */
export function address(path) {
  return new URL(path.replace(/^\/+/, ""), document.baseURI).href;
}

/** JSON in which a seed beyond 2^53, which JavaScript's numbers cannot hold, stays the text of its digits. */
export function parse(text) {
  return JSON.parse(text, (key, value, context) => {
    const exact = key !== "seed" || typeof value !== "number" || Number.isSafeInteger(value) || !context?.source;
    return exact ? value : context.source;
  });
}

function write(json) {
  return JSON.stringify(json, (key, value) => {
    const digits = key === "seed" && typeof value === "string" && /^\d+$/.test(value);
    return digits && JSON.rawJSON ? JSON.rawJSON(BigInt(value).toString()) : value;
  });
}

async function call(method, path, { json, body, headers = {} } = {}) {
  const answer = await fetch(address(path), {
    method,
    headers: json === undefined ? headers : { "Content-Type": "application/json", ...headers },
    body: json === undefined ? body : write(json),
    credentials: "same-origin",
  });
  if (answer.status === 401) {
    location.assign(address("login"));
    throw new Refusal(401, { message: "Sign in again" });
  }
  if (answer.status === 204) return null;
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const content = isJson ? parse(await answer.text()) : null;
  if (!answer.ok) throw new Refusal(answer.status, content?.error ?? {});
  return content;
}

export const api = {
  get: (path) => call("GET", `api/v1/${path}`),
  post: (path, json = {}, headers = {}) => call("POST", `api/v1/${path}`, { json, headers }),
  patch: (path, json) => call("PATCH", `api/v1/${path}`, { json }),
  remove: (path) => call("DELETE", `api/v1/${path}`),

  /** Sends one file, by `uploads` to be kept for drawing, or by `read` to be read only. */
  send(path, file, name = "image.png") {
    const form = new FormData();
    form.append("file", file, name);
    return call("POST", `api/v1/${path}`, { body: form });
  },

  /** Puts a job into the queue. The key makes a repeated request the same job. */
  draw(request) {
    return call("POST", "api/v1/jobs", { json: request, headers: { "Idempotency-Key": crypto.randomUUID() } });
  },
};

let described = null;

/** {options, models, adapters}, asked for once in the life of a page. */
export function catalogue() {
  described ??= Promise.all([api.get("options"), api.get("models"), api.get("adapters")]).then(
    ([options, { models }, { adapters }]) => ({ options, models, adapters }),
  );
  return described;
}
