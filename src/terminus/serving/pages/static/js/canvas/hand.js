// What the hand does on the canvas: pointers, one finger or two, and the keyboard, each with every tool.

import { make } from "../dom.js";

const KEYS = { b: "brush", e: "eraser", l: "lasso", h: "pan" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Hand extends EventTarget {
  tool = "brush";
  size = 32;
  active = true;
  #pointers = new Map();
  #outline = null;
  #last = null;
  #at = null;

  constructor(view, mask, ring) {
    super();
    Object.assign(this, { view, mask, ring });
    const { viewport } = view;
    viewport.addEventListener("pointerdown", (event) => this.#down(event));
    viewport.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) viewport.addEventListener(name, (event) => this.#up(event));
    viewport.addEventListener("pointerleave", () => { ring.hidden = true; });
    viewport.addEventListener("keydown", (event) => this.#key(event));
    viewport.addEventListener("blur", () => { ring.hidden = true; });
    view.addEventListener("change", () => this.#showRing());
  }

  choose(tool) {
    this.tool = tool;
    this.view.viewport.dataset.tool = tool;
    this.view.viewport.classList.toggle("painting-tool", this.active && (tool === "brush" || tool === "eraser"));
    this.dispatchEvent(new Event("tool"));
  }

  resize(size) {
    this.size = Math.min(512, Math.max(1, Math.round(size)));
    this.#showRing();
    this.dispatchEvent(new Event("size"));
  }

  get #paints() {
    return this.active && this.tool !== "pan";
  }

  #down(event) {
    if (!this.view.width || event.target.closest("button, input, .canvas-empty")) return;
    this.view.viewport.setPointerCapture(event.pointerId);
    this.view.viewport.focus({ preventScroll: true });
    this.#pointers.set(event.pointerId, event);
    if (this.#pointers.size === 2) return this.#giveUp();
    if (event.button === 1 || !this.#paints) return;
    if (event.button !== 0) return;
    const point = this.view.point(event.clientX, event.clientY);
    this.mask.remember();
    this.#last = point;
    if (this.tool === "lasso") this.#outline = [point];
    else this.mask.stroke(point, point, this.size, this.tool === "eraser");
    event.preventDefault();
  }

  #move(event) {
    const before = this.#pointers.get(event.pointerId);
    this.#at = this.view.point(event.clientX, event.clientY);
    if (event.pointerType !== "touch") this.#showRing();
    if (!before) return;
    if (this.#pointers.size === 2) return this.#pinch(before, event);
    this.#pointers.set(event.pointerId, event);
    if (!this.#last) return this.view.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      const point = this.view.point(one.clientX, one.clientY);
      if (this.tool === "lasso") this.#outline.push(point);
      else this.mask.stroke(this.#last, point, this.size, this.tool === "eraser");
      this.#last = point;
    }
    if (this.tool === "lasso") this.#showOutline();
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#outline?.length > 2) this.mask.area(this.#outline, event.altKey);
    this.#outline = this.#last = null;
    this.#showOutline();
  }

  /** A second finger means to move the view, not to paint. */
  #giveUp() {
    if (this.#last) this.mask.undo();
    this.#outline = this.#last = null;
    this.#showOutline();
  }

  #pinch(before, event) {
    const other = [...this.#pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const far = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    this.view.zoom(far(event) / Math.max(1, far(before)), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
    this.view.pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    this.#pointers.set(event.pointerId, event);
  }

  #key(event) {
    if (event.target !== this.view.viewport || !this.view.width) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") (event.shiftKey ? this.mask.redo() : this.mask.undo()), event.preventDefault();
      if (key === "y") this.mask.redo(), event.preventDefault();
      return;
    }
    if (key in KEYS) this.choose(KEYS[key]);
    else if (key === "[") this.resize(this.size * 0.85 - 0.5);
    else if (key === "]") this.resize(this.size * 1.15 + 0.5);
    else if (key === "i") this.mask.invert();
    else if (key === "0") this.view.fit();
    else if (key === "+" || key === "=" || key === "-") this.#zoomMiddle(key === "-" ? 0.8 : 1.25);
    else if (event.key in ARROWS) this.#walk(event);
    else if (key === " " && this.#paints) this.#stamp();
    else return;
    event.preventDefault();
  }

  #zoomMiddle(factor) {
    const { left, top, width, height } = this.view.viewport.getBoundingClientRect();
    this.view.zoom(factor, left + width / 2, top + height / 2);
  }

  /** Arrow keys move the brush; with Shift they paint on the way. */
  #walk(event) {
    const [x, y] = ARROWS[event.key];
    const from = this.#at ?? { x: this.view.width / 2, y: this.view.height / 2 };
    const far = Math.max(1, this.size / 2);
    const inside = (value, end) => Math.min(end, Math.max(0, value));
    this.#at = { x: inside(from.x + x * far, this.view.width), y: inside(from.y + y * far, this.view.height) };
    if (event.shiftKey && this.#paints) {
      this.mask.remember();
      this.mask.stroke(from, this.#at, this.size, this.tool === "eraser");
    }
    this.#showRing();
  }

  #stamp() {
    this.#at ??= { x: this.view.width / 2, y: this.view.height / 2 };
    this.mask.remember();
    this.mask.stroke(this.#at, this.#at, this.size, this.tool === "eraser");
    this.#showRing();
  }

  #showRing() {
    const { ring, view } = this;
    ring.hidden = !this.#at || !this.#paints || this.tool === "lasso";
    if (ring.hidden) return;
    const across = Math.max(4, this.size * view.scale);
    Object.assign(ring.style, { width: `${across}px`, height: `${across}px`, left: `${view.x + this.#at.x * view.scale}px`, top: `${view.y + this.#at.y * view.scale}px` });
  }

  #showOutline() {
    const { viewport, x, y, scale } = this.view;
    let line = viewport.querySelector("canvas.outline");
    if (!this.#outline) return line?.remove();
    line ??= viewport.appendChild(make("canvas", { class: "outline" }));
    Object.assign(line, { width: viewport.clientWidth, height: viewport.clientHeight });
    Object.assign(line.style, { position: "absolute", inset: "0", pointerEvents: "none" });
    const pen = line.getContext("2d");
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 1.5 });
    pen.setLineDash([5, 4]);
    for (const point of this.#outline) pen.lineTo(x + point.x * scale, y + point.y * scale);
    pen.stroke();
  }
}
