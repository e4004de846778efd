// The draw page: a prompt, its settings, and the image in the centre.

import { api, catalogue } from "./api.js";
import { Controls } from "./controls.js";
import { byId, debounced, memory } from "./dom.js";
import { readDropped } from "./dropped.js";
import { Drawing } from "./drawing.js";
import { complain, tell } from "./messages.js";
import { Prompt } from "./prompt.js";
import { Settings } from "./settings.js";
import { tieSettingsSheet } from "./sheet.js";
import { start } from "./shell.js";
import { Stage } from "./stage.js";

start();

async function open() {
  const all = await catalogue();
  const settings = new Settings(all);
  const prompt = new Prompt(() => settings.model?.id, all.adapters);
  prompt.offerExpansion(all.options.expand);
  settings.adapters.onword = (word) => prompt.add(word);
  settings.addEventListener("model", () => prompt.refresh());
  const recall = ({ request }) => {
    prompt.fill(request);
    settings.fill(request);
    controls.fill(request.controls ?? []);
    tell("All its settings are here.", { stay: 3000 });
    byId("prompt").focus();
  };
  let shown = null;
  const stage = new Stage({ onrecall: recall, onselect: (image) => { settings.lastSeed = image.seed; shown = image; } });
  const controls = new Controls(all.options.controls, () => shown, () => keep());
  const keep = debounced(() => memory.set("draw", request()), 400);
  const drawing = new Drawing({ follow: (job, count) => stage.follow(job, count), hear: (...event) => stage.hear(...event) });

  drawing.showSafety(all.options.safety);
  const request = () => {
    const { adapters, ...words } = prompt.request();
    const own = settings.request();
    return { task: "text", ...own, ...words, adapters: [...own.adapters, ...adapters], controls: controls.request() };
  };
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("settings").classList.remove("open");
    try {
      controls.check();
      drawing.start(request(), settings.model, Number(byId("batches").value) || 1);
    } catch (error) {
      complain(error);
    }
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  byId("reset").addEventListener("click", () => settings.reset());
  tieSettingsSheet();

  prompt.addEventListener("change", keep);
  settings.addEventListener("change", keep);
  readDropped(byId("main"), (read) => recall({ request: read.request }));
  await restore({ prompt, settings, controls, recall });
  const { images } = await api.get("images?limit=30");
  if (!drawing.busy) stage.remember(images);
  // Not on a phone, where that would open a keyboard over half of the page.
  if (matchMedia("(hover: hover)").matches && document.activeElement === document.body) byId("prompt").focus();
  document.body.dataset.ready = "true";
}

/** What an address asks for, else what was here last. */
async function restore({ prompt, settings, controls, recall }) {
  const asked = new URLSearchParams(location.search).get("recall");
  if (asked) {
    // Settings that were read from a file, by the gallery, wait in this tab; others are an image's.
    const waiting = asked === "read" ? sessionStorage.getItem("terminus.recall") : null;
    recall(waiting ? { request: JSON.parse(waiting) } : await api.get(`images/${encodeURIComponent(asked)}`));
    history.replaceState(null, "", location.pathname);
    return;
  }
  const last = memory.get("draw");
  if (last) {
    prompt.fill(last);
    settings.fill({ ...last, rescale: last.rescale ?? undefined });
    controls.fill(last.controls ?? []);
  }
  prompt.refresh();
}

open().catch(complain);
