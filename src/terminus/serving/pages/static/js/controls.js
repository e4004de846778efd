// Control images: networks that steer a drawing by an image, each with a weight and the part of the way in which it acts.

import { address, api } from "./api.js";
import { button, byId, icon, make } from "./dom.js";
import { complain } from "./messages.js";

export class Controls {
  #chosen = [];

  /** `networks` are those that the server has; `current` tells the image that the page shows, if any. */
  constructor(networks, current, onchange = () => {}) {
    Object.assign(this, { networks, current, onchange });
    byId("controls").hidden = networks.length === 0;
    byId("add-control").addEventListener("click", () => this.#add());
  }

  /** An error where one has no image yet. */
  check() {
    if (this.#chosen.some((one) => !one.image)) throw new Error("A control has no image yet. Choose one, or take the control off.");
  }

  /** The fields of the request. */
  request() {
    return this.#chosen.map(({ id, image, weight, start, end }) => ({ id, image, weight, start, end }));
  }

  /** Shows the controls of a request; networks that are not here are left out. */
  fill(controls) {
    const known = controls.filter((one) => this.networks.some((network) => network.id === one.id));
    this.#chosen = known.map((one) => ({ weight: 1, start: 0, end: 1, ...one, places: placesOf(one.image) }));
    this.#show();
  }

  #add() {
    const image = this.current();
    const places = image ? [image.url] : [];
    this.#chosen.push({ id: this.networks[0].id, image: image?.id ?? null, places, weight: 1, start: 0, end: 1 });
    this.#show();
    byId("control-list").lastElementChild.querySelector("select").focus();
    this.onchange();
  }

  #show() {
    byId("control-list").replaceChildren(...this.#chosen.map((one, at) => this.#row(one, at)));
  }

  #row(chosen, at) {
    const own = this.networks.find((one) => one.id === chosen.id);
    const network = make("select", { "aria-label": "Network", onchange: () => this.#choose(chosen, network.value) }, this.networks.map((one) => make("option", { value: one.id, selected: one === own }, one.title)));
    const remove = () => { this.#chosen = this.#chosen.filter((one) => one !== chosen); this.#show(); this.onchange(); };
    const number = (name, words, most) => {
      const take = () => { chosen[name] = Number(field.value); this.onchange(); };
      const field = make("input", { class: "value", type: "number", min: 0, max: most, step: 0.05, value: chosen[name], "aria-label": `${words} of ${own.title}`, oninput: take });
      return make("label", { class: "small muted" }, words, field);
    };
    const id = `control-file-${at}`;
    const file = make("input", { id, class: "unseen", type: "file", accept: "image/*", "aria-label": `Image for ${own.title}`, onchange: () => this.#load(chosen, file.files[0]) });
    const open = make("label", { class: "button plain", for: id }, icon("upload"), chosen.image ? "Another" : "Choose an image");
    const span = own.kind === "ip" ? [] : [number("start", "From", 1), number("end", "To", 1)];
    return make("li", {},
      make("div", { class: "row nowrap" }, network, button(`Take off ${own.title}`, "close", remove, { bare: true })),
      make("p", { class: "hint" }, own.sentence),
      make("div", { class: "row" }, this.#face(chosen), file, open),
      make("div", { class: "row" }, number("weight", "Weight", 2), span));
  }

  /** The image, from wherever it is kept. */
  #face(chosen) {
    if (!chosen.image) return null;
    const [place, ...others] = chosen.places;
    const next = () => {
      chosen.places = others;
      if (!others.length) chosen.image = null;  // an upload of yesterday
      this.#show();
    };
    return make("img", { src: address(place), alt: "Control image", onerror: next });
  }

  #choose(chosen, id) {
    chosen.id = id;
    if (this.networks.find((one) => one.id === id).kind === "ip") Object.assign(chosen, { start: 0, end: 1 });
    this.#show();
    this.onchange();
  }

  async #load(chosen, file) {
    if (!file) return;
    const upload = await api.send("uploads", file, file.name).catch(complain);
    if (upload) Object.assign(chosen, { image: upload.id, places: [upload.url] });
    this.#show();
    this.onchange();
  }
}

/** Where the image with this id may be: among the uploads, or in the gallery. */
function placesOf(id) {
  return [`api/v1/uploads/${encodeURIComponent(id)}`, `api/v1/images/${encodeURIComponent(id)}.png`];
}
