// The adapters of a drawing: chosen from those that the server has, each with a weight and its trigger words.

import { button, byId, make } from "./dom.js";
import { dialog } from "./messages.js";
import { consented } from "./consent.js";

export class AdapterList {
  #chosen = [];
  #model = null;
  /** Called with a trigger word that somebody pressed. */
  onword = () => {};

  constructor(adapters, onchange) {
    this.all = adapters;
    this.onchange = onchange;
    byId("add-adapter").addEventListener("click", () => this.#pick());
    this.#show();
  }

  request() {
    return this.#chosen.map(({ id, weight }) => ({ id, weight }));
  }

  fill(adapters) {
    this.#chosen = adapters.filter((one) => this.all.some((known) => known.id === one.id)).map((one) => ({ ...one }));
    this.#show();
  }

  /** Another model is chosen: what does not fit it says so. */
  fit(model) {
    this.#model = model;
    this.#show();
  }

  #show() {
    byId("adapter-list").replaceChildren(...this.#chosen.map((one) => this.#row(one)));
    byId("add-adapter").hidden = this.all.length === 0;
    byId("add-adapter").closest(".adapters").hidden = this.all.length === 0;
  }

  #row(chosen) {
    const adapter = this.all.find((one) => one.id === chosen.id);
    const title = adapter.title || adapter.name;
    const weight = make("input", { class: "value", type: "number", step: 0.05, min: -10, max: 10, value: chosen.weight, "aria-label": `Weight of ${title}`, oninput: () => { chosen.weight = Number(weight.value); this.onchange(); } });
    const remove = () => { this.#chosen = this.#chosen.filter((one) => one !== chosen); this.#show(); this.onchange(); };
    const words = (adapter.trigger ?? []).map((word) => button(word, "plus", () => this.onword(word), { kind: "chip" }));
    const warning = adapter.fits === false ? make("p", { class: "notice" }, adapter.why ?? "It was made for another kind of model") : null;
    return make("li", {}, make("span", { class: "name" }, title), weight, button(`Take off ${title}`, "close", remove, { bare: true }), make("div", { class: "triggers" }, words, warning));
  }

  async #pick() {
    const list = make("div", { class: "pick" });
    const free = this.all.filter((one) => !this.#chosen.some((chosen) => chosen.id === one.id));
    for (const adapter of free) {
      const hint = adapter.fits === false ? `does not fit ${this.#model?.title ?? "this model"}` : (adapter.trigger ?? []).join(", ");
      list.append(make("button", { type: "button", onclick: (event) => event.target.closest("dialog").close(adapter.id) }, make("span", {}, adapter.title || adapter.name, make("small", { class: "hint" }, hint))));
    }
    if (!free.length) list.append(make("p", { class: "muted" }, "All of them are in use."));
    const id = await dialog("Add an adapter", list);
    const adapter = this.all.find((one) => one.id === id);
    if (!adapter || !(await consented(adapter))) return;
    this.#chosen.push({ id, weight: 1 });
    this.#show();
    this.onchange();
  }
}
