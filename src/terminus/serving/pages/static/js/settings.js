// The settings of a drawing: the fields of the panel, and the part of a request that they come to.

import { AdapterList } from "./adapters.js";
import { byId, make } from "./dom.js";
import { showBadge } from "./badge.js";

const NUMBERS = ["steps", "guidance", "rescale", "variation", "count"];
export class Settings extends EventTarget {
  #touched = new Set();
  lastSeed = null;

  constructor({ options, models, adapters }) {
    super();
    this.options = options;
    this.models = models;
    this.panel = byId("settings");
    this.adapters = new AdapterList(adapters, () => this.#changed());
    this.#listModels();
    this.#listSolvers();
    linkSliders(document);
    this.panel.addEventListener("input", (event) => this.#touch(event.target));
    this.panel.addEventListener("change", (event) => this.#touch(event.target));
    this.#listenSeed();
    this.#modelChanged();
  }

  get model() {
    return this.models.find((one) => one.id === byId("model").value) ?? this.models[0];
  }

  field(name) {
    return document.getElementById(name);
  }

  /** The fields of JobRequest that the panel decides; null is the model's own. */
  request() {
    const request = { model: this.model?.id, solver: byId("solver").value, spacing: byId("spacing").value };
    for (const name of NUMBERS) if (this.field(name)) request[name] = this.#own(name) ? null : Number(this.field(name).value);
    request.count ??= 1;
    request.variation ??= 0;
    request.interval = [Number(byId("interval_low").value), Number(byId("interval_high").value)];
    if (this.field("width")) Object.assign(request, this.#size());
    const seed = byId("seed").value.trim();
    request.seed = seed === "" ? null : Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
    request.adapters = this.adapters.request();
    if (this.field("hires")?.checked) {
      request.hires = { factor: Number(byId("hires_factor").value), strength: Number(byId("hires_strength").value) };
    }
    return request;
  }

  #own(name) {
    return name === "rescale" && !this.#touched.has("rescale");
  }

  #size() {
    const [width, height] = [Number(byId("width").value), Number(byId("height").value)];
    return width && height ? { width, height } : { width: null, height: null };
  }

  /** Shows the settings of a request; fields at null go back to the model's own. */
  fill(request) {
    if (request.model && this.models.some((one) => one.id === request.model)) {
      byId("model").value = request.model;
      this.#modelChanged();
    }
    for (const name of [...NUMBERS, "solver", "spacing"]) {
      if (!(name in request) || !this.field(name)) continue;
      const own = request[name] === null || request[name] === undefined;
      if (own) this.#touched.delete(name);
      else this.#touched.add(name);
      this.#put(name, request[name]);
    }
    if (request.interval) [byId("interval_low").value, byId("interval_high").value] = request.interval;
    if (request.width && this.field("width")) this.#put("width", request.width), this.#put("height", request.height);
    if ("seed" in request) byId("seed").value = request.seed ?? "";
    if (request.adapters) this.adapters.fill(request.adapters);
    if (this.field("hires")) {
      byId("hires").checked = Boolean(request.hires);
      byId("hires-part").hidden = !request.hires;
      if (request.hires) this.#put("hires_factor", request.hires.factor), this.#put("hires_strength", request.hires.strength ?? 0.5);
    }
    this.#showSolver();
    this.showShapes();
    this.#showSeed();
  }

  /** Everything as the model has it. */
  reset() {
    this.#touched.clear();
    for (const name of ["steps", "guidance", "variation", "count", "solver", "spacing"]) this.#putDefault(name);
    [byId("interval_low").value, byId("interval_high").value] = this.options.defaults?.interval ?? [0, 1];
    this.adapters.fill([]);
    byId("seed").value = "";
    if (this.field("hires")) byId("hires").checked = false, (byId("hires-part").hidden = true);
    this.#modelChanged();
    this.#changed();
  }

  #put(name, value) {
    const field = this.field(name);
    if (!field || value === null || value === undefined) return;
    field.value = value;
    field.dispatchEvent(new Event("sync"));
  }

  #putDefault(name) {
    this.#put(name, this.options.defaults?.[name]);
  }

  #touch(field) {
    if (field.id === "model") return this.#modelChanged(), this.#changed();
    if (field.id) this.#touched.add(field.id);
    if (field.dataset.for) this.#touched.add(field.dataset.for);
    if (field.id === "solver" || field.id === "spacing") this.#showSolver();
    if (field.id === "width" || field.id === "height") this.showShapes();
    if (field.id === "hires") byId("hires-part").hidden = !field.checked;
    if (field.id === "seed") this.#showSeed();
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #listModels() {
    byId("model").replaceChildren(...this.models.map((one) => make("option", { value: one.id }, one.title || one.name)));
  }

  #listSolvers() {
    byId("solver").replaceChildren(...this.options.solvers.map((one) => make("option", { value: one.name }, one.title)));
    byId("spacing").replaceChildren(...this.options.spacings.map((one) => make("option", { value: one.name }, one.title)));
    for (const name of ["steps", "guidance", "variation", "solver", "spacing"]) this.#putDefault(name);
    this.#showSolver();
  }

  #showSolver() {
    const sentence = (all, name) => all.find((one) => one.name === byId(name).value)?.sentence ?? "";
    byId("solver-hint").textContent = sentence(this.options.solvers, "solver");
    byId("spacing-hint").textContent = sentence(this.options.spacings, "spacing");
  }

  #modelChanged() {
    const model = this.model;
    if (!model) return;
    showBadge(model);
    if (!this.#touched.has("rescale")) this.#put("rescale", model.rescale);
    if (this.field("shapes")) {
      const [first] = model.shapes;
      if (!this.#touched.has("width") && first) this.#put("width", first.width), this.#put("height", first.height);
      for (const side of ["width", "height"]) {
        const { smallest, largest, multiple } = model.sizes;
        Object.assign(this.field(side), { min: smallest, max: largest, step: multiple });
      }
      this.showShapes();
    }
    this.adapters.fit(model);
    this.dispatchEvent(new Event("model"));
  }

  /** The shapes of the model as buttons; arrows move between them. */
  showShapes() {
    const place = document.getElementById("shapes");
    if (!place) return;
    const size = this.#size();
    const shapes = this.model?.shapes ?? [];
    const chosen = shapes.findIndex((one) => one.width === size.width && one.height === size.height);
    const had = place.contains(document.activeElement);
    place.replaceChildren(...shapes.map((shape, at) => this.#shapeButton(shape, at === chosen, at === Math.max(chosen, 0))));
    place.querySelectorAll("i").forEach((sign, at) => {
      const scale = 20 / Math.max(shapes[at].width, shapes[at].height);
      sign.style.width = `${shapes[at].width * scale}px`;
      sign.style.height = `${shapes[at].height * scale}px`;
    });
    if (had) place.querySelector("[tabindex='0']")?.focus();
  }

  #shapeButton(shape, checked, reachable) {
    const choose = () => {
      this.#touched.add("width");
      this.#put("width", shape.width);
      this.#put("height", shape.height);
      this.showShapes();
      this.#changed();
    };
    const move = (event) => {
      const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      const all = [...event.currentTarget.parentNode.children];
      all[(all.indexOf(event.currentTarget) + way + all.length) % all.length].click();
    };
    return make("button", { type: "button", role: "radio", "aria-checked": String(checked), tabindex: reachable ? 0 : -1, title: `${shape.width} × ${shape.height}`, onclick: choose, onkeydown: move }, make("i"), shape.name);
  }

  #listenSeed() {
    byId("new-seed").addEventListener("click", () => { byId("seed").value = ""; this.#showSeed(); this.#changed(); });
    byId("keep-seed").addEventListener("click", () => {
      byId("seed").value = byId("seed").value === "" && this.lastSeed !== null ? this.lastSeed : "";
      this.#showSeed();
      this.#changed();
    });
  }

  #showSeed() {
    byId("keep-seed").setAttribute("aria-pressed", String(byId("seed").value !== ""));
  }
}

/** Ties every slider to the number beside it; the number is what the keyboard reaches. */
function linkSliders(root) {
  for (const slider of root.querySelectorAll("input[type='range'][data-for]")) {
    const number = document.getElementById(slider.dataset.for);
    const show = () => {
      const part = (Number(slider.value) - Number(slider.min)) / (Number(slider.max) - Number(slider.min));
      slider.style.setProperty("--part", `${100 * Math.min(1, Math.max(0, part))}%`);
    };
    const follow = () => { slider.value = number.value; show(); };
    slider.addEventListener("input", () => { number.value = slider.value; show(); });
    number.addEventListener("input", follow);
    number.addEventListener("sync", follow);
    follow();
  }
}
