// The jobs of this user as they change: one stream of events for the whole page, closed while nobody looks at it.

import { address, api, parse } from "./api.js";
import { debounced } from "./dom.js";

const NAMES = ["queued", "started", "step", "finished", "failed", "cancelled"];
const STATES = { queued: "queued", started: "running", step: "running", finished: "finished", failed: "failed", cancelled: "cancelled" };

/** Every job this page knows of, in the order in which it heard of them. Tells "change" with {job, name, data}. */
class Jobs extends EventTarget {
  known = new Map();
  #stream = null;
  #watchers = new Map();
  /** Jobs whose previews somebody wants, once they are drawn: browsers allow few streams at once. */
  #seen = new Set();
  #refreshing = debounced(() => this.refresh(), 250);

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.open()));
    addEventListener("pagehide", () => this.#close());
  }

  /** Jobs that wait or are drawn. */
  get active() {
    return [...this.known.values()].filter((job) => job.state === "queued" || job.state === "running");
  }

  open() {
    if (this.#stream || document.hidden) return;
    this.#stream = new EventSource(address("api/v1/events"));
    for (const name of NAMES) this.#stream.addEventListener(name, (event) => this.#hear(name, parse(event.data)));
    this.#stream.addEventListener("open", () => this.refresh());
  }

  #close() {
    this.#stream?.close();
    this.#stream = null;
  }

  /** Asks for all jobs anew: what happened while nobody listened is told as a change. */
  async refresh() {
    const { jobs } = await api.get("jobs").catch(() => ({ jobs: [] }));
    for (const job of jobs) {
      const before = this.known.get(job.id);
      this.known.set(job.id, { ...before, ...job });
      if (job.state === "running") this.#addPreviews(job.id);
      if (before?.state !== job.state) this.#tell(this.known.get(job.id), nameFor(job.state), job);
    }
    this.dispatchEvent(new CustomEvent("change", { detail: {} }));
  }

  #hear(name, data) {
    const job = { ...(this.known.get(data.job) ?? { id: data.job }), ...data, state: STATES[name] };
    delete job.job;
    this.known.set(job.id, job);
    if (name === "started") this.#addPreviews(job.id);
    if (name !== "step" && this.active.some((one) => one.state === "queued")) this.#refreshing();
    this.#tell(job, name, data);
    this.dispatchEvent(new CustomEvent("change", { detail: { job, name, data } }));
  }

  #tell(job, name, data) {
    for (const watcher of this.#watchers.get(job.id) ?? []) watcher(name, data, job);
    if (["finished", "failed", "cancelled"].includes(name)) this.#watchers.delete(job.id);
  }

  /** Adds the previews of one job, by a stream of its own that ends with it, to what watchers are told. */
  #addPreviews(id) {
    if (!this.#seen.delete(id)) return;
    const stream = new EventSource(address(`api/v1/jobs/${id}/events`));
    stream.addEventListener("step", (event) => {
      const data = parse(event.data);
      const job = this.known.get(id);
      if (job && data.previews) this.#tell(Object.assign(job, { previews: data.previews }), "preview", data);
    });
    for (const name of ["finished", "failed", "cancelled"]) stream.addEventListener(name, () => stream.close());
    addEventListener("pagehide", () => stream.close());
  }

  /** Calls `watcher(name, data, job)` for every event of one job; what it has missed comes first. */
  watch(job, watcher, { previews = false } = {}) {
    const known = { ...job, ...(this.known.get(job.id) ?? {}) };
    this.known.set(job.id, known);
    this.#watchers.set(job.id, [...(this.#watchers.get(job.id) ?? []), watcher]);
    const over = !["queued", "running"].includes(known.state);
    if (over) this.#tell(known, nameFor(known.state), known);
    else if (previews) this.#seen.add(job.id);
    if (known.state === "running") this.#addPreviews(job.id);
    this.dispatchEvent(new CustomEvent("change", { detail: { job: known } }));
  }

  /** A promise of the images of a job; refused with what stopped it. */
  finished(job, onstep = () => {}) {
    return new Promise((resolve, reject) => {
      this.watch(job, (name, data) => {
        if (name === "step") onstep(data);
        else if (name === "finished") resolve(data);
        else if (name === "failed") reject(new Error(data.error?.message ?? "The job failed"));
        else if (name === "cancelled") reject(new Error("The job was cancelled"));
      });
    });
  }

  cancel(id) {
    return api.remove(`jobs/${id}`);
  }
}

function nameFor(state) {
  return state === "running" ? "started" : state;
}

export const jobs = new Jobs();
