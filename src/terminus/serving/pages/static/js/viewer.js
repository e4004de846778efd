// One image, large, with all that it says of itself, and what can be done with it.

import { actions } from "./actions.js";
import { address, api } from "./api.js";
import { byId, day, make } from "./dom.js";
import { complain, tell } from "./messages.js";

const NAMES = { model: "Model", seed: "Seed", steps: "Steps", solver: "Solver", guidance: "Guidance", rescale: "Rescale", spacing: "Spacing", strength: "Strength", task: "Task", precision: "Precision", model_hash: "Model hash", template: "Template", expanded_from: "Written out from", variation: "Variation" };

export class Viewer {
  #images = [];
  #image = null;

  constructor(page) {
    this.page = page;
    this.box = byId("viewer");
    byId("viewer-close").addEventListener("click", () => this.box.close());
    byId("viewer-back").addEventListener("click", () => this.#step(-1));
    byId("viewer-on").addEventListener("click", () => this.#step(1));
    this.box.addEventListener("keydown", (event) => {
      if (event.target.closest("input, select, textarea")) return;
      if (event.key === "ArrowRight") this.#step(1);
      if (event.key === "ArrowLeft") this.#step(-1);
    });
    this.box.addEventListener("close", () => document.querySelector(`[data-image="${CSS.escape(this.#image?.id ?? "")}"] .open`)?.focus());
  }

  show(image, images) {
    this.#images = images;
    this.#image = image;
    byId("viewer-image").replaceChildren(make("img", { src: address(image.url), alt: image.prompt || "Image without a prompt" }));
    byId("viewer-side").replaceChildren(...this.#side(image));
    const at = images.indexOf(image);
    byId("viewer-back").disabled = at <= 0;
    byId("viewer-on").disabled = at < 0 || at >= images.length - 1;
    if (!this.box.open) this.box.showModal();
  }

  #step(way) {
    const next = this.#images[this.#images.indexOf(this.#image) + way];
    if (next) this.show(next, this.#images);
  }

  #side(image) {
    const gone = () => {
      const at = this.#images.indexOf(image);
      const next = this.#images[at + 1] ?? this.#images[at - 1];
      const rest = this.#images.filter((one) => one !== image);
      this.page.ondelete(image);
      if (next) this.show(next, rest);
      else this.box.close();
    };
    const back = () => this.page.ondelete(image).onback();
    const row = make("div", { class: "actions" }, actions(image, { ondelete: gone, onback: back }));
    row.addEventListener("click", () => setTimeout(() => this.page.onchange(), 300));
    const copy = () => navigator.clipboard.writeText(image.prompt).then(() => tell("Copied.", { stay: 1500 })).catch(complain);
    return [
      row,
      make("h2", {}, "Prompt"),
      make("p", { class: "words" }, image.prompt || "without a prompt"),
      image.negative ? make("p", { class: "small muted" }, `Leave out: ${image.negative}`) : null,
      make("button", { type: "button", onclick: copy }, "Copy the prompt"),
      facts(image),
      this.#boards(image),
    ].filter(Boolean);
  }

  #boards(image) {
    const all = this.page.boards();
    if (!all.length) return null;
    const chosen = new Set(image.boards ?? []);
    const one = (board) => {
      const mark = make("button", { type: "button", "aria-pressed": String(chosen.has(board.id)), onclick: async () => {
        if (!chosen.delete(board.id)) chosen.add(board.id);
        mark.setAttribute("aria-pressed", String(chosen.has(board.id)));
        const changed = await api.patch(`images/${image.id}`, { boards: [...chosen] }).catch(complain);
        if (changed) image.boards = changed.boards;
      } }, board.name);
      return mark;
    };
    return make("div", { class: "stack" }, make("h2", {}, "Boards"), make("div", { class: "board-list" }, all.map(one)));
  }
}

function facts(image) {
  const list = make("dl", { class: "facts" });
  const put = (name, value) => list.append(make("dt", {}, name), make("dd", {}, value));
  const said = { ...(image.metadata ?? {}), model: image.model, seed: image.seed, steps: image.steps };
  put("Size", `${image.width} × ${image.height}`);
  put("Drawn", day(image.created));
  for (const [name, title] of Object.entries(NAMES)) {
    const value = said[name];
    if (value === null || value === undefined || value === "") continue;
    put(title, typeof value === "object" ? Object.values(value).join(", ") : name === "model_hash" ? String(value).slice(0, 10) : String(value));
  }
  for (const adapter of said.adapters ?? []) put("Adapter", `${adapter.name} ${adapter.weight ?? 1}`);
  return list;
}
