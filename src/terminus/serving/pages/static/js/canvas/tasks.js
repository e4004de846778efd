// The four tasks of the canvas: what each shows, and the part of a request that it comes to.

import { api } from "../api.js";
import { byId, make } from "../dom.js";

const STRENGTH = { inpaint: 1, image: 0.6, upscale: 0.3 };

/** Ties the buttons of tasks and tools to what they do. */
export function tasks({ view, mask, hand, frame, current, change }) {
  let chosen = "inpaint";
  const strengths = { ...STRENGTH };
  let fills = [];
  const touched = { strength: new Set(), fill: false };

  function choose(task) {
    chosen = task in { inpaint: 1, outpaint: 1, image: 1, upscale: 1 } ? task : "inpaint";
    change();
    show();
    view.fit();
  }

  function show() {
    for (const one of byId("tasks").children) {
      one.setAttribute("aria-checked", String(one.dataset.task === chosen));
      one.tabIndex = one.dataset.task === chosen ? 0 : -1;
    }
    for (const part of document.querySelectorAll("[data-for-task]")) part.hidden = !part.dataset.forTask.split(" ").includes(chosen);
    byId("mask-layer").hidden = chosen !== "inpaint";
    byId("frame").hidden = chosen !== "outpaint" || !current();
    frame.set({});
    hand.active = chosen === "inpaint";
    hand.choose(chosen === "inpaint" && hand.tool === "pan" ? "brush" : chosen === "inpaint" ? hand.tool : "pan");
    if (chosen in strengths) put("strength", strengths[chosen]);
    showTools();
    showFill();
  }

  function put(name, value) {
    byId(name).value = value;
    byId(name).dispatchEvent(new Event("sync"));
  }

  function showTools() {
    for (const one of byId("tools").querySelectorAll("[data-tool]")) one.setAttribute("aria-pressed", String(one.dataset.tool === hand.tool));
    byId("undo").disabled = !mask.canUndo;
    byId("redo").disabled = !mask.canRedo;
  }

  function showFill() {
    if (!touched.fill) byId("fill").value = chosen === "outpaint" || Number(byId("strength").value) >= 1 ? "surroundings" : "original";
    byId("fill-hint").textContent = fills.find((one) => one.name === byId("fill").value)?.sentence ?? "";
  }

  /** What the task adds to a request; an error says what is missing on the canvas. */
  async function request() {
    const image = current();
    if (!image) throw new Error("There is no image yet: open one, or choose one that you drew.");
    const own = { task: chosen, image: image.id };
    const number = (name) => Number(byId(name).value);
    if (chosen === "image") return { ...own, strength: number("strength") };
    if (chosen === "upscale") return { ...own, factor: number("factor"), strength: touched.strength.has("upscale") ? number("strength") : null };
    const joined = { ...own, fill: byId("fill").value, feather: number("feather") };
    if (chosen === "outpaint") {
      if (frame.empty) throw new Error("Nothing is added yet: drag an edge of the frame outwards.");
      return { ...joined, margins: { ...frame.margins } };
    }
    if (mask.empty) throw new Error("Nothing is marked yet: paint over what shall be drawn anew.");
    const file = await api.send("uploads", await mask.file(), "mask.png");
    const crop = byId("crop_to_mask").checked;
    return { ...joined, mask: file.id, strength: number("strength"), crop_to_mask: crop, ...(crop ? { padding: number("padding") } : {}) };
  }

  for (const one of byId("tasks").children) {
    one.addEventListener("click", () => choose(one.dataset.task));
    one.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const all = [...byId("tasks").children];
      if (!way) return;
      event.preventDefault();
      const next = all[(all.indexOf(one) + way + all.length) % all.length];
      choose(next.dataset.task);
      next.focus();
    });
  }
  tieTools();

  function tieTools() {
    for (const one of byId("tools").querySelectorAll("[data-tool]")) one.addEventListener("click", () => hand.choose(one.dataset.tool));
    const acts = { undo: () => mask.undo(), redo: () => mask.redo(), "invert-mask": () => mask.invert(), "fill-mask": () => mask.fill(), "clear-mask": () => mask.clear(), fit: () => view.fit() };
    for (const [name, act] of Object.entries(acts)) byId(name).addEventListener("click", act);
    hand.addEventListener("tool", showTools);
    hand.addEventListener("size", () => put("brush-size", hand.size));
    mask.addEventListener("change", showTools);
    const listen = (name, act) => {
      byId(name).addEventListener("input", act);
      document.querySelector(`input[data-for="${name}"]`)?.addEventListener("input", act);
    };
    listen("brush-size", () => hand.resize(Number(byId("brush-size").value)));
    listen("strength", () => { strengths[chosen] = Number(byId("strength").value); touched.strength.add(chosen); showFill(); });
    listen("feather", () => { byId("mask-layer").style.filter = Number(byId("feather").value) ? `blur(${Number(byId("feather").value) / 4}px)` : ""; });
    byId("fill").addEventListener("input", () => { touched.fill = true; showFill(); });
    byId("crop_to_mask").addEventListener("input", () => { byId("padding-part").hidden = !byId("crop_to_mask").checked; });
    for (const side of ["left", "top", "right", "bottom"]) {
      byId(`margin-${side}`).addEventListener("change", (event) => { frame.set({ [side]: Number(event.target.value) }); view.fit(); });
    }
    frame.addEventListener("change", () => { for (const [side, value] of Object.entries(frame.margins)) byId(`margin-${side}`).value = value; });
  }

  return {
    choose,
    show,
    request,
    listFills: (all) => {
      fills = all;
      byId("fill").replaceChildren(...all.map((one) => make("option", { value: one.name }, one.title)));
      show();
    },
  };
}
