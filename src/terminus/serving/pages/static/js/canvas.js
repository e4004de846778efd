// The canvas page: an image, what shall change in it, and what came of it.

import { address, api, catalogue } from "./api.js";
import { byId, make, memory } from "./dom.js";
import { Controls } from "./controls.js";
import { Drawing } from "./drawing.js";
import { complain, tell } from "./messages.js";
import { Prompt } from "./prompt.js";
import { Settings } from "./settings.js";
import { rove } from "./roving.js";
import { start } from "./shell.js";
import { tieSettingsSheet } from "./sheet.js";
import { Frame } from "./canvas/frame.js";
import { Hand } from "./canvas/hand.js";
import { Mask } from "./canvas/mask.js";
import { Result } from "./canvas/result.js";
import { tasks } from "./canvas/tasks.js";
import { View } from "./canvas/view.js";

start();
const view = new View(byId("viewport"), byId("board"));
const mask = new Mask(byId("mask-layer"));
const hand = new Hand(view, mask, byId("brush-ring"));
const frame = new Frame(view, byId("frame"));
const result = new Result(view, { keep: (image) => load(image), discard: () => view.fit() });
/** What is on the canvas: an image of the gallery, or an upload: {id, url, width, height}. */
let current = null;
const task = tasks({ view, mask, hand, frame, current: () => current, change: () => result.close() });

async function open() {
  const all = await catalogue();
  const settings = new Settings(all);
  const prompt = new Prompt(() => settings.model?.id, all.adapters);
  prompt.offerExpansion(all.options.expand);
  settings.adapters.onword = (word) => prompt.add(word);
  settings.addEventListener("model", () => prompt.refresh());
  const controls = new Controls(all.options.controls, () => current);
  task.listFills(all.options.fills);
  frame.step = 8;
  const drawing = new Drawing({ follow, hear });
  drawing.showSafety(all.options.safety);

  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("settings").classList.remove("open");
    try {
      controls.check();
      const { adapters, ...words } = prompt.request();
      const { width, height, ...own } = settings.request();
      const request = { ...own, ...words, adapters: [...own.adapters, ...adapters], controls: controls.request(), ...(await task.request()) };
      memory.set("canvas", { ...own, ...words });
      result.close();
      await drawing.start(request, settings.model, Number(byId("batches").value) || 1);
    } catch (error) {
      complain(error);
    }
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  byId("reset").addEventListener("click", () => settings.reset());
  tieSettingsSheet();
  takeFiles();
  await restore(prompt, settings);
  document.body.dataset.ready = "true";
}

/** The image that an address names, else a choice of those drawn lately. */
async function restore(prompt, settings) {
  const asked = new URLSearchParams(location.search);
  if (asked.get("image")) {
    const image = await api.get(`images/${encodeURIComponent(asked.get("image"))}`);
    prompt.fill({ prompt: image.prompt, negative: image.negative });
    if (image.request?.model) settings.fill({ model: image.request.model });
    task.choose(asked.get("task") ?? "inpaint");
    await load(image);
    return;
  }
  const last = memory.get("canvas");
  if (last) prompt.fill(last), settings.fill({ ...last, rescale: last.rescale ?? undefined });
  prompt.refresh();
  const { images } = await api.get("images?limit=24");
  byId("choices").replaceChildren(...images.map((image) => make("li", {}, make("button", { type: "button", "aria-label": `Open: ${image.prompt || "image"}`, onclick: () => load(image).catch(complain) }, make("img", { src: address(image.thumbnail), alt: "" })))));
  rove(byId("choices"));
}

/** Puts an image on the canvas, with an empty mask. */
async function load(image) {
  const source = new Image();
  source.src = address(image.url);
  await source.decode();
  const [width, height] = [source.naturalWidth, source.naturalHeight];
  current = { ...image, width, height };
  result.close();
  const layer = byId("image-layer");
  Object.assign(layer, { width, height });
  layer.getContext("2d").drawImage(source, 0, 0);
  mask.resize(width, height);
  byId("board").hidden = false;
  byId("canvas-empty").hidden = true;
  hand.resize(Math.max(4, Math.round(Math.min(width, height) / 8)));
  frame.margins = { left: 0, top: 0, right: 0, bottom: 0 };
  task.show();
  view.resize(width, height);
  document.body.dataset.image = image.id;
}

function takeFiles() {
  const take = async (file) => {
    if (!file) return;
    const upload = await api.send("uploads", file, file.name || "image.png");
    await load(upload);
  };
  byId("file").addEventListener("change", () => take(byId("file").files[0]).catch(complain));
  byId("viewport").addEventListener("dragover", (event) => event.preventDefault());
  byId("viewport").addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]).catch(complain);
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))).catch(complain));
}

function follow() {
  byId("stage-bar").hidden = false;
  byId("stage-text").textContent = "waits";
  byId("stage-progress").style.width = "0";
}

function hear(name, data, job) {
  const margins = job.request?.margins ?? {};
  if (name === "step") {
    byId("stage-progress").style.width = `${(100 * data.step) / data.steps}%`;
    byId("stage-text").textContent = `${data.step} of ${data.steps}`;
  }
  if (name === "preview") result.preview(data.previews[0], margins);
  if (!["finished", "failed", "cancelled"].includes(name)) return;
  byId("stage-bar").hidden = true;
  if (name === "finished") result.show(data.images, margins);
  else result.close();
  if (name === "cancelled") tell("Cancelled.", { stay: 2500 });
}

open().catch(complain);
