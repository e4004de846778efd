// The stage: the image in the centre of the page, previews while it is drawn, and what was drawn lately below it.

import { actions } from "./actions.js";
import { address } from "./api.js";
import { byId, make, seconds } from "./dom.js";
import { announce } from "./messages.js";
import { rove } from "./roving.js";

const LATELY = 30;

export class Stage {
  #job = null;
  #images = [];
  #lately = [];

  /** `page` is {onrecall, onselect}. */
  constructor(page) {
    this.page = page;
    byId("tiles").addEventListener("keydown", (event) => this.#move(event));
  }

  /** Shows a job from now on: its images take shape here. */
  follow(job, count) {
    this.#job = job.id;
    byId("stage-empty").hidden = true;
    byId("actions").hidden = true;
    byId("stage-bar").hidden = false;
    byId("stage-text").textContent = "waits";
    byId("stage-progress").style.width = "0";
    this.waiting = count;
    this.#mark(null);
  }

  /** One event of the job that is followed; events of others are left alone. */
  hear(name, data, job) {
    if (job.id !== this.#job) return;
    if (name === "queued") byId("stage-text").textContent = job.position > 1 ? `place ${job.position}` : "waits";
    if (name === "started") byId("stage-text").textContent = "begins";
    if (name === "step") this.#step(data);
    if (name === "preview") this.#preview(data.previews);
    if (["finished", "failed", "cancelled"].includes(name)) this.#end(name, data);
  }

  #step({ step, steps, seconds_left: left }) {
    byId("stage-progress").style.width = `${(100 * step) / steps}%`;
    byId("stage-text").textContent = `${step} of ${steps}${left > 2 ? `, ${seconds(left)}` : ""}`;
  }

  #preview(previews) {
    const place = byId("tiles");
    if (!place.querySelector(".preview") || place.children.length !== previews.length) {
      this.#lay(previews.length, () => make("div", { class: "tile preview" }, make("img", { alt: "Preview", decoding: "sync" })));
    }
    previews.forEach((preview, at) => { place.children[at].firstChild.src = preview; });
  }

  #end(name, data) {
    byId("stage-bar").hidden = true;
    if (name === "finished") {
      const { images } = data;
      this.#lately = [...images, ...this.#lately].slice(0, LATELY);
      this.show(images);
      announce(images.length === 1 ? "The image is drawn" : `${images.length} images are drawn`);
      return;
    }
    byId("tiles").replaceChildren();
    byId("stage-empty").hidden = this.#lately.length > 0;
    if (this.#lately.length) this.show([this.#lately[0]]);
    announce(name === "cancelled" ? "Cancelled" : "Not drawn");
  }

  /** Shows finished images; the first is chosen. Previews stay until the files have come. */
  async show(images) {
    this.#images = images;
    const shown = images.map((image) => make("img", { src: address(image.url), alt: image.prompt || "Image without a prompt", width: image.width, height: image.height }));
    await Promise.all(shown.map((one) => one.decode().catch(() => {})));
    if (this.#images !== images) return;
    byId("stage-empty").hidden = true;
    this.#lay(images.length, (at) => make("button", { type: "button", class: "tile", onclick: () => this.choose(at), "aria-label": images[at].prompt || `Image ${at + 1}` }, shown[at]));
    this.choose(0);
    this.#showLately();
  }

  /** What was drawn before this page was opened. */
  remember(images) {
    this.#lately = images.slice(0, LATELY);
    this.#showLately();
  }

  choose(at) {
    const image = this.#images[at];
    [...byId("tiles").children].forEach((tile, number) => tile.setAttribute("aria-pressed", String(number === at)));
    this.#mark(image);
    const place = byId("actions");
    place.hidden = false;
    const seed = make("span", { class: "seed small muted number" }, `seed ${image.seed} · ${image.width} × ${image.height}`);
    const written = image.request?.expanded_from ? make("p", { class: "written small muted", id: "written" }, `Written out: ${image.prompt}`) : null;
    place.replaceChildren(...actions(image, { ...this.page, ondelete: () => this.#gone(image), onback: () => this.show([image]) }), seed, ...(written ? [written] : []));
    this.page.onselect?.(image);
  }

  #gone(image) {
    this.#lately = this.#lately.filter((one) => one.id !== image.id);
    const rest = this.#images.filter((one) => one.id !== image.id);
    if (rest.length || this.#lately.length) this.show(rest.length ? rest : [this.#lately[0]]);
    else this.clear();
    this.#showLately();
  }

  clear() {
    byId("tiles").replaceChildren();
    byId("actions").hidden = true;
    byId("stage-empty").hidden = false;
  }

  #lay(count, tile) {
    const place = byId("tiles");
    place.dataset.count = count;
    place.style.setProperty("--columns", columnsFor(count, place.parentNode));
    place.replaceChildren(...Array.from({ length: count }, (_, at) => tile(at)));
  }

  #showLately() {
    byId("strip").replaceChildren(...this.#lately.map((image) => make("li", {}, make("button", { type: "button", data: { image: image.id }, "aria-label": `Show: ${image.prompt || "image"}`, onclick: () => this.show([image]) }, make("img", { src: address(image.thumbnail), alt: "", loading: "lazy" })))));
    this.#mark(this.#images[0]);
  }

  #mark(image) {
    const all = [...byId("strip").querySelectorAll("button")];
    for (const one of all) one.setAttribute("aria-current", String(one.dataset.image === image?.id));
    rove(byId("strip"), all.find((one) => one.dataset.image === image?.id));
  }

  #move(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const tiles = [...byId("tiles").children];
    const at = tiles.indexOf(document.activeElement);
    if (way && at >= 0) tiles[(at + way + tiles.length) % tiles.length].focus();
  }
}

/** So many columns that square tiles come out largest. */
function columnsFor(count, { clientWidth, clientHeight }) {
  const side = (columns) => Math.min(clientWidth / columns, clientHeight / Math.ceil(count / columns));
  const all = Array.from({ length: count }, (_, at) => at + 1);
  return all.reduce((best, columns) => (side(columns) > side(best) ? columns : best), 1);
}
