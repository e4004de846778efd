// The view of the canvas: an image on a board that is moved and enlarged under the pointer.

const PAD = 28;
const LARGEST = 40;

/** Tells "change" when the board has moved. Sizes and points are pixels of the image unless a name says otherwise. */
export class View extends EventTarget {
  scale = 1;
  x = 0;
  y = 0;
  width = 0;
  height = 0;
  /** Room around the image that is shown too: the frame's margins. */
  around = { left: 0, top: 0, right: 0, bottom: 0 };

  constructor(viewport, board) {
    super();
    this.viewport = viewport;
    this.board = board;
    new ResizeObserver(() => this.fit()).observe(viewport);
    viewport.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.width) this.zoom(Math.exp(-event.deltaY * 0.0016), event.clientX, event.clientY);
    }, { passive: false });
  }

  resize(width, height) {
    Object.assign(this, { width, height });
    this.board.style.width = `${width}px`;
    this.board.style.height = `${height}px`;
    this.fit();
  }

  /** Shows all of the image and its margins, in the middle. */
  fit() {
    if (!this.width) return;
    const { clientWidth, clientHeight } = this.viewport;
    const { left, top, right, bottom } = this.around;
    const [width, height] = [this.width + left + right, this.height + top + bottom];
    this.scale = Math.min(LARGEST, (clientWidth - 2 * PAD) / width, (clientHeight - 2 * PAD) / height);
    this.x = (clientWidth - width * this.scale) / 2 + left * this.scale;
    this.y = (clientHeight - height * this.scale) / 2 + top * this.scale;
    this.#place();
  }

  /** Enlarges by a factor about a point of the window. */
  zoom(factor, clientX, clientY) {
    const before = this.point(clientX, clientY);
    this.scale = Math.min(LARGEST, Math.max(0.05, this.scale * factor));
    const after = this.point(clientX, clientY);
    this.x += (after.x - before.x) * this.scale;
    this.y += (after.y - before.y) * this.scale;
    this.#place();
  }

  /** Moves by pixels of the window. */
  pan(x, y) {
    this.x += x;
    this.y += y;
    this.#place();
  }

  /** The point of the image under a point of the window. */
  point(clientX, clientY) {
    const { left, top } = this.viewport.getBoundingClientRect();
    return { x: (clientX - left - this.x) / this.scale, y: (clientY - top - this.y) / this.scale };
  }

  #place() {
    this.board.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.dispatchEvent(new Event("change"));
  }
}
