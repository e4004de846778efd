// What came out, over what was there: a divider between before and after, the results to choose from.

import { actions } from "../actions.js";
import { address } from "../api.js";
import { byId, make } from "../dom.js";
import { rove } from "../roving.js";

/** `page` is {keep(image), discard()}. */
export class Result {
  #shown = null;
  #layer = null;
  #margins = { left: 0, top: 0 };

  constructor(view, page) {
    Object.assign(this, { view, page });
    byId("before-after-place").addEventListener("input", () => this.#divide());
    byId("keep").addEventListener("click", () => page.keep(this.#shown));
    byId("discard").addEventListener("click", () => this.close(true));
    view.addEventListener("change", () => this.#divide());
  }

  /** Previews of a job, laid over the image. */
  preview(source, margins) {
    this.#lay(source, margins, "Preview");
    this.#layer.style.clipPath = "none";
  }

  /** The finished images of a job. */
  show(images, margins) {
    this.#margins = margins;
    byId("result-bar").hidden = false;
    byId("results").replaceChildren(...images.map((image, at) => make("li", {}, make("button", { type: "button", "aria-label": `Result ${at + 1}`, onclick: () => this.#choose(image) }, make("img", { src: address(image.thumbnail), alt: "" })))));
    byId("results").hidden = images.length < 2;
    this.#choose(images[0]);
  }

  #choose(image) {
    rove(byId("results"));
    this.#shown = image;
    byId("before-after").hidden = false;
    byId("before-after-place").value = 50;
    byId("actions").replaceChildren(...actions(image, { ondelete: () => this.close(true) }));
    this.#lay(address(image.url), this.#margins, image.prompt || "Result");
    this.#divide();
  }

  close(discarded = false) {
    this.#layer?.remove();
    this.#layer = this.#shown = null;
    byId("before-after").hidden = byId("result-bar").hidden = true;
    if (discarded) this.page.discard();
  }

  #lay(source, margins, words) {
    this.#layer ??= this.view.board.appendChild(make("img", { class: "after", draggable: "false" }));
    this.#layer.alt = words;
    this.#layer.src = source;
    const { left, top, right, bottom } = { left: 0, top: 0, right: 0, bottom: 0, ...margins };
    const { width, height } = this.view;
    Object.assign(this.#layer.style, { left: `${-left}px`, top: `${-top}px`, width: `${width + left + right}px`, height: `${height + top + bottom}px` });
  }

  /** After is to the left of the divider, so that moving it to the right shows more of it. */
  #divide() {
    if (!this.#shown || !this.#layer) return;
    const { viewport, x, scale } = this.view;
    const place = (viewport.clientWidth * byId("before-after-place").value) / 100;
    byId("divider").style.left = `${place}px`;
    const left = parseFloat(this.#layer.style.left);
    const share = (100 * ((place - x) / scale - left)) / parseFloat(this.#layer.style.width);
    this.#layer.style.clipPath = `inset(0 ${100 - Math.min(100, Math.max(0, share))}% 0 0)`;
  }
}
