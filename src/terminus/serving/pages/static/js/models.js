// The models and adapters that the server has: what each is, how we know, under which licence.

import { address, api, catalogue } from "./api.js";
import { chips, reasons } from "./badge.js";
import { bytes, byId, icon, make, memory } from "./dom.js";
import { complain, dialog } from "./messages.js";
import { consented } from "./consent.js";
import { start } from "./shell.js";

start();

async function open() {
  const { models, adapters } = await catalogue();
  byId("models").append(...models.map(modelCard));
  byId("adapters").append(...adapters.map(adapterCard));
  byId("no-adapters").hidden = adapters.length > 0;
  byId("filter").addEventListener("input", () => {
    const words = byId("filter").value.trim().toLowerCase();
    for (const card of document.querySelectorAll(".card")) card.hidden = !card.textContent.toLowerCase().includes(words);
  });
  document.body.dataset.ready = "true";
}

function face(thing, symbol) {
  return thing.thumbnail ? make("img", { class: "face", src: address(thing.thumbnail), alt: "", loading: "lazy" }) : make("span", { class: "face" }, icon(symbol));
}

function modelCard(model) {
  const use = async () => {
    if (!(await consented(model))) return;
    memory.set("draw", { ...(memory.get("draw") ?? {}), model: model.id, width: null, height: null, rescale: null });
    location.assign(address("./"));
  };
  return make("li", { class: "card panel" }, face(model, "models"),
    make("div", {}, make("h3", {}, model.title || model.name), make("div", { class: "chips" }, chips(model), model.loaded ? make("span", { class: "chip good" }, "loaded") : null)),
    make("div", { class: "whole stack" }, reasons(model), restrictions(model), words(model.trigger)),
    make("div", { class: "do" }, make("button", { type: "button", class: "primary", onclick: () => use().catch(complain) }, "Draw with it"), make("button", { type: "button", onclick: () => report(model).catch(complain) }, "All findings")));
}

function adapterCard(adapter) {
  const fits = { true: ["good", "fits the loaded model"], false: ["warn", "made for another kind of model"] }[String(adapter.fits)];
  const facts = make("dl", { class: "facts" });
  for (const [name, value] of [["Kind", adapter.kind], ["Base", adapter.base], ["Licence", adapter.licence ?? "not stated"], ["Size", adapter.size_bytes && bytes(adapter.size_bytes)], ["Hash", adapter.hash && String(adapter.hash).slice(0, 12)]]) {
    if (value) facts.append(make("dt", {}, name), make("dd", {}, value));
  }
  return make("li", { class: "card panel" }, face(adapter, "wand"),
    make("div", {}, make("h3", {}, adapter.title || adapter.name), make("div", { class: "chips" }, fits ? make("span", { class: `chip ${fits[0]}` }, fits[1]) : null)),
    make("div", { class: "whole stack" }, adapter.why ? make("p", { class: "notice" }, icon("warning"), make("span", {}, adapter.why)) : null, words(adapter.trigger), facts, restrictions(adapter)));
}

function words(trigger) {
  const all = [trigger ?? []].flat();
  return all.length ? make("p", { class: "row tight" }, make("span", { class: "small muted" }, "Trigger words"), all.map((word) => make("span", { class: "chip" }, word))) : null;
}

function restrictions(thing) {
  const all = [thing.restrictions ?? []].flat().filter(Boolean);
  return all.length ? make("details", {}, make("summary", {}, "What the licence restricts"), make("ul", { class: "small muted" }, all.map((one) => make("li", {}, one)))) : null;
}

async function report(model) {
  const full = await api.get(`models/${encodeURIComponent(model.id)}`);
  await dialog(model.title || model.name, make("pre", { class: "report", tabindex: "0" }, JSON.stringify(full.report ?? full, null, 2)));
}

open().catch(complain);
