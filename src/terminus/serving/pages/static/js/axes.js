// The axes of a grid: which setting changes along each, and through which values.

import { button, byId, make } from "./dom.js";

const NUMBERS = {
  seed: ["Seed", "1, 2, 3"], guidance: ["Guidance", "2, 4, 6"], steps: ["Steps", "8, 16, 28"], rescale: ["Guidance rescale", "0, 0.7"],
  variation: ["Variation", "0, 0.2"],
};
const TEXTS = { prompt: ["Prompt", "one | another"], negative: ["Leave out", "nothing | text"] };

export class Axes {
  #axes = [{ field: "guidance" }, { field: "seed" }];

  constructor({ options, models, adapters }, request) {
    Object.assign(this, { options, models, adapters, requestOf: request });
    byId("add-axis").addEventListener("click", () => { this.#axes.push({ field: "steps" }); this.#show(); });
    this.#show();
  }

  /** Names of everything that may be an axis. */
  get #fields() {
    const fields = { ...Object.fromEntries(Object.entries({ ...NUMBERS, ...TEXTS }).map(([name, [title]]) => [name, title])), solver: "Solver" };
    if (this.models.length > 1) fields.model = "Model";
    for (const one of this.adapters) fields[`adapter ${one.id}`] = `Weight of ${one.title || one.name}`;
    return fields;
  }

  /** [{field, values}] as the server takes them. */
  request() {
    return this.#axes.map(({ field, values }) => {
      if (!values?.length) throw new Error(`No values for ${this.#fields[field]} yet.`);
      if (!field.startsWith("adapter ")) return { field, values };
      const id = field.slice(8);
      const others = this.requestOf().adapters.filter((one) => one.id !== id);
      return { field: "adapters", values: values.map((weight) => [...others, { id, weight }]) };
    });
  }

  /** How a field, or a value of it, is called. */
  nameOf(field, value) {
    if (value === undefined) return field === "adapters" ? "Adapters" : (this.#fields[field] ?? field);
    if (field === "solver") return this.options.solvers.find((one) => one.name === value)?.title ?? value;
    if (field === "model") return this.models.find((one) => one.id === value)?.title ?? value;
    if (field === "adapters") return value.map((one) => one.weight).join(", ") || "none";
    return field in TEXTS ? value || "nothing" : `${this.#fields[field] ?? field} ${value}`;
  }

  #show() {
    byId("axes").replaceChildren(...this.#axes.map((axis, at) => this.#row(axis, at)));
    byId("add-axis").hidden = this.#axes.length > 2;
    this.#count();
  }

  #row(axis, at) {
    const label = ["Columns", "Rows", "Sheets"][at];
    const field = make("select", { "aria-label": `${label}: what changes`, onchange: () => { axis.field = field.value; axis.values = axis.text = undefined; this.#show(); } }, Object.entries(this.#fields).map(([name, title]) => make("option", { value: name, selected: name === axis.field }, title)));
    const drop = () => { this.#axes.splice(at, 1); this.#show(); };
    const more = this.#axes.length > 1 ? button(`Without ${label.toLowerCase()}`, "close", drop, { bare: true }) : make("span");
    return make("li", {}, make("span", { class: "label" }, label), field, make("div", { class: "values" }, this.#values(axis, label)), more);
  }

  #values(axis, label) {
    if (axis.field === "solver") return this.#choices(axis, this.options.solvers.map((one) => [one.name, one.title]), label);
    if (axis.field === "model") return this.#choices(axis, this.models.map((one) => [one.id, one.title || one.name]), label);
    const [, example] = NUMBERS[axis.field] ?? TEXTS[axis.field] ?? ["", "0, 0.5, 1"];
    axis.text ??= axis.field in TEXTS ? (axis.field === "prompt" ? this.requestOf().prompt : "") : example;
    const field = make("input", { value: axis.text, "aria-label": `${label}: values`, spellcheck: "false", placeholder: axis.field in TEXTS ? "one | another" : "2, 4, 6 or 1..4", oninput: () => take() });
    const take = () => {
      axis.text = field.value;
      axis.values = axis.field in TEXTS ? field.value.split("|").map((one) => one.trim()) : numbersOf(field.value);
      field.setAttribute("aria-invalid", String(!axis.values.length));
      this.#count();
    };
    take();
    return field;
  }

  #choices(axis, all, label) {
    axis.values ??= all.slice(0, 3).map(([value]) => value);
    return make("div", { class: "choices", role: "group", "aria-label": `${label}: values` }, all.map(([value, title]) => {
      const one = make("button", { type: "button", "aria-pressed": String(axis.values.includes(value)), onclick: () => {
        axis.values = all.map(([each]) => each).filter((each) => (each === value ? !axis.values.includes(each) : axis.values.includes(each)));
        one.setAttribute("aria-pressed", String(axis.values.includes(value)));
        this.#count();
      } }, title);
      return one;
    }));
  }

  #count() {
    const count = this.#axes.reduce((product, axis) => product * (axis.values?.length ?? 0), 1);
    byId("grid-size").textContent = `${count} ${count === 1 ? "image" : "images"}`;
  }
}

/** "2, 4, 6" or "1..4" as numbers. */
function numbersOf(text) {
  const numbers = [];
  for (const part of text.split(/[,;\s]+/).filter(Boolean)) {
    const range = /^(-?\d+)\.\.(-?\d+)$/.exec(part);
    if (!range) numbers.push(Number(part));
    else for (let value = Number(range[1]); value <= Number(range[2]) && numbers.length < 100; value += 1) numbers.push(value);
  }
  return numbers.every(Number.isFinite) ? numbers : [];
}
