// The frame of outpainting: its edges are dragged, or moved by arrow keys, to where the image shall end.

import { make } from "../dom.js";

const SIDES = ["left", "top", "right", "bottom"];
const HANDLES = [...SIDES, "left top", "right top", "left bottom", "right bottom"];
const OUT = { left: [-1, 0], right: [1, 0], top: [0, -1], bottom: [0, 1] };

/** Tells "change" with the margins in pixels of the image. */
export class Frame extends EventTarget {
  margins = { left: 0, top: 0, right: 0, bottom: 0 };
  step = 8;

  constructor(view, box) {
    super();
    Object.assign(this, { view, box });
    box.append(...HANDLES.map((sides) => this.#handle(sides)));
    view.addEventListener("change", () => this.show());
  }

  set(margins) {
    for (const side of SIDES) this.margins[side] = this.#snap(margins[side] ?? this.margins[side]);
    this.view.around = this.box.hidden ? { left: 0, top: 0, right: 0, bottom: 0 } : { ...this.margins };
    this.show();
    this.dispatchEvent(new Event("change"));
  }

  get empty() {
    return SIDES.every((side) => this.margins[side] === 0);
  }

  #snap(value) {
    return Math.max(0, Math.round(value / this.step) * this.step);
  }

  show() {
    const { x, y, scale, width, height } = this.view;
    const { left, top, right, bottom } = this.margins;
    Object.assign(this.box.style, { left: `${x - left * scale}px`, top: `${y - top * scale}px`, width: `${(width + left + right) * scale}px`, height: `${(height + top + bottom) * scale}px` });
    this.box.dataset.size = `${width + left + right} × ${height + top + bottom}`;
  }

  #handle(sides) {
    const names = sides.split(" ");
    const handle = make("button", { type: "button", "data-side": sides, "aria-label": `Move the ${names.join(" and ")} edge; arrow keys move it too` });
    handle.addEventListener("pointerdown", (event) => this.#drag(event, names, handle));
    handle.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      this.#grow(names, way[0] * this.step, way[1] * this.step, this.margins);
      this.view.fit();
    });
    return handle;
  }

  #drag(down, names, handle) {
    down.preventDefault();
    down.stopPropagation();
    handle.focus();
    handle.setPointerCapture(down.pointerId);
    const [from, scale] = [{ ...this.margins }, this.view.scale];
    const move = (event) => this.#grow(names, (event.clientX - down.clientX) / scale, (event.clientY - down.clientY) / scale, from);
    const end = () => {
      handle.removeEventListener("pointermove", move);
      this.view.fit();
    };
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", end, { once: true });
    handle.addEventListener("pointercancel", end, { once: true });
  }

  #grow(names, x, y, from) {
    const margins = {};
    for (const side of names) margins[side] = from[side] + OUT[side][0] * x + OUT[side][1] * y;
    this.set(margins);
  }
}
