// The compare page: two models draw the same prompts with the same seeds, and somebody says which is better.

import { address, api, catalogue, wordsOf } from "./api.js";
import { consented } from "./consent.js";
import { byId, make, memory } from "./dom.js";
import { jobs } from "./live.js";
import { announce, complain } from "./messages.js";
import { start } from "./shell.js";

const SIDES = ["left", "right"];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "neither" };
start();
/** The pairs of the comparison, and which of them is shown. */
let pairs = [];
let at = 0;
let models = [];

async function open() {
  ({ models } = await catalogue());
  for (const side of SIDES) byId(`${side}-model`).replaceChildren(...models.map((one) => make("option", { value: one.id }, one.title || one.name)));
  if (models.length > 1) byId("right-model").selectedIndex = 1;
  byId("prompts").value = memory.get("compare", memory.get("draw")?.prompt ?? "");
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  byId("cancel").addEventListener("click", () => pairs.forEach((pair) => SIDES.forEach((side) => !pair[side].image && jobs.cancel(pair[side].id).catch(() => {}))));
  byId("next").addEventListener("click", () => { at += 1; show(); });
  for (const one of document.querySelectorAll("[data-vote]")) one.addEventListener("click", () => vote(one.dataset.vote));
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, dialog");
    if (typing || byId("duel").hidden || !(event.key in KEYS)) return;
    event.preventDefault();
    vote(KEYS[event.key]);
  });
  showTally(await tally());
  document.body.dataset.ready = "true";
}

async function begin() {
  byId("form-error").hidden = true;
  try {
    const chosen = SIDES.map((side) => models.find((one) => one.id === byId(`${side}-model`).value));
    for (const model of chosen) if (!(await consented(model))) return;
    const prompts = byId("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!prompts.length) throw new Error("Write at least one prompt.");
    memory.set("compare", byId("prompts").value);
    const first = Math.floor(Math.random() * 2 ** 31);
    const requests = prompts.flatMap((prompt) => Array.from({ length: Number(byId("seeds").value) || 1 }, (_, number) => ({ model: chosen[0].id, prompt, seed: first + number, steps: Number(byId("steps").value) || null })));
    const answer = await api.post("comparisons", { models: chosen.map((one) => one.id), requests });
    [pairs, at] = [answer.pairs, 0];
    for (const pair of pairs) SIDES.forEach((side) => follow(pair, side));
    show();
  } catch (error) {
    byId("form-error").hidden = false;
    byId("form-error").textContent = wordsOf(error);
  }
}

function follow(pair, side) {
  jobs.watch(pair[side], (name, data) => {
    if (name === "finished") pair[side].image = data.images[0];
    if (["failed", "cancelled"].includes(name)) pair[side].stopped = name;
    if (pairs[at] === pair) show();
    byId("cancel").hidden = pairs.every((one) => SIDES.every((each) => one[each].image || one[each].stopped));
  }, { previews: false });
}

function show() {
  const pair = pairs[at];
  byId("duel").hidden = !pair;
  if (!pair) return;
  byId("duel-prompt").textContent = pair.request.prompt;
  for (const side of SIDES) {
    const [figure, image] = [byId(side), pair[side].image];
    const place = figure.querySelector(".duel-image");
    const shown = image ? address(image.url) : "";
    if (place.dataset.shown !== shown) {
      place.dataset.shown = shown;
      place.replaceChildren(image ? make("img", { src: shown, alt: `${side}: ${pair.request.prompt}` }) : make("span", { class: "muted small" }, pair[side].stopped ?? "being drawn"));
    }
    figure.classList.toggle("won", pair.choice === side);
    figure.querySelector("figcaption").textContent = pair.told ? nameOf(pair.told[side]) : "told after your vote";
  }
  const ready = SIDES.every((side) => pair[side].image);
  for (const one of document.querySelectorAll("[data-vote]")) {
    one.disabled = !ready || Boolean(pair.choice);
    one.setAttribute("aria-pressed", String(pair.choice === one.dataset.vote));
  }
  byId("progress").textContent = `Pair ${at + 1} of ${pairs.length}`;
  byId("next").hidden = !pair.choice || at + 1 >= pairs.length;
}

async function vote(choice) {
  const pair = pairs[at];
  if (!pair || pair.choice || !SIDES.every((side) => pair[side].image)) return;
  pair.choice = choice;
  try {
    const told = await api.post("votes", { pair: pair.id, choice });
    pair.told = { left: told.left_model, right: told.right_model };
    showTally(told.tally);
    announce(`Left was ${nameOf(told.left_model)}, right was ${nameOf(told.right_model)}`);
  } catch (error) {
    pair.choice = undefined;
    complain(error);
  }
  show();
  if (!byId("next").hidden) byId("next").focus();
}

function nameOf(id) {
  const model = models.find((one) => one.id === id);
  return model?.title || model?.name || id;
}

/** How often each model won, counted from the stored votes. */
async function tally() {
  const answer = await fetch(address("api/v1/votes"), { credentials: "same-origin" });
  const wins = {};
  for (const line of (await answer.text()).split("\n").filter(Boolean)) {
    const vote = JSON.parse(line);
    const winner = { left: vote.left_model, right: vote.right_model }[vote.choice];
    if (winner) wins[winner] = (wins[winner] ?? 0) + 1;
  }
  return wins;
}

function showTally(wins = {}) {
  const entries = Object.entries(wins).sort((a, b) => b[1] - a[1]);
  if (!entries.length) return;
  const most = entries[0][1];
  byId("tally").replaceChildren(...entries.map(([model, count]) => {
    const bar = make("i");
    bar.style.width = `${(100 * count) / most}%`;
    return make("div", { class: "line" }, make("span", {}, nameOf(model)), make("div", { class: "bar" }, bar), make("span", { class: "number" }, String(count)));
  }));
}

open().catch(complain);
