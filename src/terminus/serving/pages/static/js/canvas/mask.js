// The mask: where the image is drawn anew. Marks are kept at the image's own size; every change can be undone.

const KEPT = 60;

/** Tells "change" after every mark. */
export class Mask extends EventTarget {
  #past = [];
  #future = [];

  constructor(layer) {
    super();
    this.layer = layer;
    this.brush = layer.getContext("2d", { willReadFrequently: true });
  }

  get colour() {
    return getComputedStyle(document.documentElement).getPropertyValue("--accent").trim() || "#f2b65c";
  }

  resize(width, height) {
    Object.assign(this.layer, { width, height });
    [this.#past, this.#future] = [[], []];
    this.#changed();
  }

  get canUndo() { return this.#past.length > 0; }
  get canRedo() { return this.#future.length > 0; }

  /** Whether nothing is marked. */
  get empty() {
    const { data } = this.#pixels();
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) return false;
    return true;
  }

  /** The share of the image that is marked, 0 to 1. */
  get share() {
    const { data } = this.#pixels();
    let marked = 0;
    for (let at = 3; at < data.length; at += 4) marked += data[at] >= 128 ? 1 : 0;
    return (4 * marked) / data.length;
  }

  /** Everything until the next call is one step of undo. */
  remember() {
    this.#past.push(this.#pixels());
    if (this.#past.length > KEPT) this.#past.shift();
    this.#future = [];
  }

  /** One stretch of a stroke, `size` pixels across. */
  stroke(from, to, size, erase) {
    const { brush } = this;
    this.#ink(erase);
    Object.assign(brush, { lineWidth: size, lineCap: "round", lineJoin: "round" });
    brush.beginPath();
    brush.moveTo(from.x, from.y);
    brush.lineTo(to.x + 0.001, to.y);
    brush.stroke();
    this.#changed();
  }

  /** The inside of an outline. */
  area(points, erase) {
    this.#ink(erase);
    this.brush.beginPath();
    for (const { x, y } of points) this.brush.lineTo(x, y);
    this.brush.closePath();
    this.brush.fill();
    this.#changed();
  }

  invert() {
    this.remember();
    this.#ink(false);
    this.brush.globalCompositeOperation = "xor";
    this.#all();
  }

  fill() {
    this.remember();
    this.#ink(false);
    this.#all();
  }

  clear() {
    this.remember();
    this.#ink(true);
    this.#all();
  }

  undo() { this.#step(this.#past, this.#future); }
  redo() { this.#step(this.#future, this.#past); }

  /** A PNG, white where the image is drawn anew and black elsewhere. */
  async file() {
    const copy = new OffscreenCanvas(this.layer.width, this.layer.height);
    const marked = this.#pixels();
    const { data } = marked;
    for (let at = 0; at < data.length; at += 4) {
      data.fill(data[at + 3] >= 128 ? 255 : 0, at, at + 3);
      data[at + 3] = 255;
    }
    copy.getContext("2d").putImageData(marked, 0, 0);
    return copy.convertToBlob({ type: "image/png" });
  }

  #step(from, to) {
    const pixels = from.pop();
    if (!pixels) return;
    to.push(this.#pixels());
    this.brush.putImageData(pixels, 0, 0);
    this.#changed();
  }

  #ink(erase) {
    this.brush.globalCompositeOperation = erase ? "destination-out" : "source-over";
    this.brush.fillStyle = this.brush.strokeStyle = this.colour;
  }

  #all() {
    this.brush.fillRect(0, 0, this.layer.width, this.layer.height);
    this.#changed();
  }

  #pixels() {
    return this.brush.getImageData(0, 0, this.layer.width, this.layer.height);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
