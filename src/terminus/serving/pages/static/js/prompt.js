// The prompt: a plain text area over a mirror that colours what the marks mean, and a count of tokens.

import { api } from "./api.js";
import { byId, debounced, make } from "./dom.js";
import { stretches, takeAdapters } from "./grammar.js";

export class Prompt extends EventTarget {
  #field = byId("prompt");
  #negative = byId("negative");
  #mirror = byId("prompt-mirror");
  #ask = 0;

  /** `modelOf` tells the id of the model that will read it; `adapters` are all that the server has. */
  constructor(modelOf, adapters) {
    super();
    this.modelOf = modelOf;
    this.adapters = adapters;
    const read = debounced(() => this.#read(), 160);
    this.#field.addEventListener("input", () => { this.#colour(); read(); this.dispatchEvent(new Event("change")); });
    this.#negative.addEventListener("input", () => this.dispatchEvent(new Event("change")));
    this.#field.addEventListener("keydown", (event) => this.#weigh(event));
    byId("negative-toggle").addEventListener("click", () => this.showNegative(byId("negative-box").hidden, true));
  }

  /** Shows the button by which the server's text model writes the prompt out. */
  offerExpansion(offered) {
    const toggle = byId("expand");
    toggle.hidden = !offered;
    toggle.addEventListener("click", () => {
      toggle.setAttribute("aria-pressed", String(!this.expands));
      this.dispatchEvent(new Event("change"));
    });
  }

  /** Whether it is asked for. */
  get expands() {
    return document.getElementById("expand")?.getAttribute("aria-pressed") === "true";
  }

  get text() {
    return this.#field.value;
  }

  /** {prompt, negative, adapters, expand}: adapters that the prompt names are taken out of it. */
  request() {
    const { prompt, adapters } = takeAdapters(this.#field.value, this.adapters);
    return { prompt, negative: this.#negative.value.trim(), adapters, expand: this.expands };
  }

  fill({ prompt, negative }) {
    if (prompt !== undefined) this.#field.value = prompt ?? "";
    if (negative !== undefined) {
      this.#negative.value = negative ?? "";
      this.showNegative(Boolean(negative));
    }
    this.refresh();
  }

  /** Puts words at the end: a trigger word of an adapter. */
  add(words) {
    const before = this.#field.value.trimEnd();
    this.#field.value = before ? `${before.replace(/,$/, "")}, ${words}` : words;
    this.refresh();
    this.dispatchEvent(new Event("change"));
  }

  refresh() {
    this.#colour();
    this.#read();
  }

  showNegative(shown, focus = false) {
    byId("negative-box").hidden = !shown;
    byId("negative-toggle").setAttribute("aria-expanded", String(shown));
    if (shown && focus) this.#negative.focus();
  }

  #colour() {
    const text = this.#field.value;
    const spans = stretches(text, this.adapters);
    const cuts = [...new Set([0, text.length, ...spans.flatMap((one) => [one.start, one.end])])].sort((a, b) => a - b);
    const parts = cuts.slice(1).map((end, number) => {
      const start = cuts[number];
      const kinds = spans.filter((one) => one.start <= start && one.end >= end).map((one) => `span-${one.kind}`);
      const piece = text.slice(start, end);
      return kinds.length ? make("span", { class: kinds.at(-1) }, piece) : piece;
    });
    // A last line that is empty has no height of its own.
    this.#mirror.replaceChildren(...parts, "\u200b");
  }

  async #read() {
    const [ask, place] = [(this.#ask += 1), byId("tokens")];
    const model = this.modelOf();
    if (!model) return;
    const { prompt } = this.request();
    const answer = await api.post("prompts/read", { model, prompt }).catch(() => null);
    if (ask !== this.#ask || !answer) return;
    const { chunks = [], problems = [] } = answer;
    const last = chunks.at(-1) ?? { tokens: 0, limit: 75 };
    place.replaceChildren(make("b", {}, String(last.tokens)), ` of ${last.limit} tokens`, chunks.length > 1 ? ` in chunk ${chunks.length}` : "");
    place.classList.toggle("over", chunks.length > 1);
    place.title = chunks.length > 1 ? "The text encoders read a long prompt in chunks; the subject belongs in the first." : "";
    byId("prompt-problems").textContent = problems.map((one) => (typeof one === "string" ? one : one.message)).join(" ");
    this.#field.setAttribute("aria-invalid", String(problems.length > 0));
  }

  /** Control or Command with arrow up or down changes the weight of the selection by 0.1. */
  #weigh(event) {
    if (!(event.ctrlKey || event.metaKey) || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    const { selectionStart: from, selectionEnd: to, value } = this.#field;
    if (from === to) return;
    event.preventDefault();
    const change = event.key === "ArrowUp" ? 0.1 : -0.1;
    const chosen = value.slice(from, to);
    const weighed = /^\((.*):([\d.]+)\)$/s.exec(chosen);
    const weight = Math.min(10, Math.max(0, (weighed ? Number(weighed[2]) : 1) + change));
    const inner = weighed ? weighed[1] : chosen;
    const text = Math.abs(weight - 1) < 0.01 ? inner : `(${inner}:${Number(weight.toFixed(2))})`;
    this.#field.setRangeText(text, from, to, "select");
    this.#field.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
