// One press of Draw: the jobs it puts into the queue, the errors beside their fields, cancelling.

import { Refusal, api, wordsOf } from "./api.js";
import { byId } from "./dom.js";
import { jobs } from "./live.js";
import { consented } from "./consent.js";
import { tell } from "./messages.js";

/** Queues one job per batch, shows each as it is drawn, and keeps the buttons true. */
export class Drawing {
  #mine = new Set();
  /** How many warnings of each job have been shown. */
  #told = new Map();

  /** `hear(name, data, job)` is told everything; `follow(job, count)` when a job begins to be shown. */
  constructor({ follow, hear }) {
    this.follow = follow;
    this.hear = hear;
    byId("cancel").addEventListener("click", () => this.cancel());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#mine.size && !document.querySelector("dialog[open]")) this.cancel();
    });
  }

  /** Says openly that images are looked at, and what is hidden. */
  showSafety(safety) {
    if (!safety) return;
    const labels = Object.entries(safety.thresholds).map(([label, least]) => `${label} from ${least} on`).join(", ");
    byId("safety").textContent = `A safety filter (${safety.classifier}) looks at finished images and hides ${labels}. There are no previews.`;
    byId("safety").hidden = false;
  }

  /** Whether something of this page waits or is drawn. */
  get busy() {
    return this.#mine.size > 0;
  }

  async start(request, model, batches = 1) {
    this.#refuse(null);
    if (!(await consented(model))) return null;
    let last = null;
    for (let batch = 0; batch < batches; batch += 1) {
      const seed = request.seed === null || batch === 0 ? request.seed : Number(request.seed) + batch * request.count;
      last = await this.#queue({ ...request, seed });
      if (!last) break;
    }
    return last;
  }

  async #queue(request) {
    try {
      const job = await api.draw(request);
      for (const warning of job.warnings) tell(warning, { stay: 12000 });
      this.#told.set(job.id, job.warnings.length);
      this.#mine.add(job.id);
      this.#showButtons();
      if (this.#mine.size === 1) this.follow(job, request.count);
      jobs.watch({ ...job, request }, (name, data, known) => this.#hear(name, data, known, request), { previews: true });
      return job;
    } catch (error) {
      this.#refuse(error);
      return null;
    }
  }

  #hear(name, data, job, request) {
    if (name === "started" && this.#mine.size > 1) this.follow(job, request.count);
    this.hear(name, data, job);
    if (!["finished", "failed", "cancelled"].includes(name)) return;
    this.#mine.delete(job.id);
    for (const warning of (data.warnings ?? []).slice(this.#told.get(job.id))) tell(warning, { stay: 20000 });
    this.#showButtons();
    if (name === "failed") this.#refuse(new Refusal(500, data.error ?? job.error ?? {}));
  }

  cancel() {
    for (const id of this.#mine) jobs.cancel(id).catch((error) => this.#refuse(error));
  }

  #showButtons() {
    byId("cancel").hidden = !this.busy;
    document.body.classList.toggle("drawing", this.busy);
  }

  #refuse(error) {
    for (const field of document.querySelectorAll("[aria-invalid='true']")) field.removeAttribute("aria-invalid");
    const place = byId("form-error");
    place.hidden = error === null;
    if (error === null) return;
    place.textContent = wordsOf(error);
    const named = error.field && document.getElementById(error.field.split(".")[0]);
    if (named) {
      named.setAttribute("aria-invalid", "true");
      named.focus();
    }
  }
}
