// Control images: networks that steer a drawing by an image, each with a weight and the part in which it acts.

import { address, api } from "../api.js";
import { button, byId, make } from "../dom.js";
import { complain } from "../messages.js";

export class Controls {
  #chosen = [];

  /** `networks` are those that the server has; `current` tells the id and address of the image on the canvas. */
  constructor(networks, current) {
    Object.assign(this, { networks, current });
    byId("controls").hidden = networks.length === 0;
    byId("add-control").addEventListener("click", () => this.#add());
  }

  request() {
    return this.#chosen.map(({ id, image, weight, start, end }) => ({ id, image, weight, start, end }));
  }

  #add() {
    const image = this.current();
    this.#chosen.push({ id: this.networks[0].id, image: image?.id ?? null, url: image?.url ?? null, weight: 1, start: 0, end: 1 });
    this.#show();
  }

  #show() {
    byId("control-list").replaceChildren(...this.#chosen.map((one) => this.#row(one)));
  }

  #row(chosen) {
    const network = make("select", { "aria-label": "Network", onchange: () => { chosen.id = network.value; } }, this.networks.map((one) => make("option", { value: one.id, selected: one.id === chosen.id }, one.title ?? one.id)));
    const number = (name, words, most) => {
      const field = make("input", { class: "value", type: "number", min: 0, max: most, step: 0.05, value: chosen[name], "aria-label": words, oninput: () => { chosen[name] = Number(field.value); } });
      return make("label", { class: "small muted" }, words, field);
    };
    const file = make("input", { type: "file", accept: "image/*", "aria-label": "Control image", onchange: () => this.#load(chosen, file.files[0]) });
    const remove = () => { this.#chosen = this.#chosen.filter((one) => one !== chosen); this.#show(); };
    const seen = chosen.url ? make("img", { src: address(chosen.url), alt: "Control image" }) : null;
    return make("li", {}, make("div", { class: "row" }, network, button("Take off", "close", remove, { bare: true })), make("div", { class: "row" }, seen, file), make("div", { class: "row" }, number("weight", "weight", 2), number("start", "from", 1), number("end", "to", 1)));
  }

  async #load(chosen, file) {
    if (!file) return;
    const upload = await api.send("uploads", file, file.name).catch(complain);
    if (upload) Object.assign(chosen, { image: upload.id, url: upload.url });
    this.#show();
  }
}
