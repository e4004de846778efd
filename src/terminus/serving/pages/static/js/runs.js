// Training runs as they go: the loss by band of timesteps, the rate, previews, and where the reports are.

import { address, api } from "./api.js";
import { chart, short } from "./chart.js";
import { byId, day, make } from "./dom.js";
import { complain } from "./messages.js";
import { start } from "./shell.js";

const COLOURS = ["--band-0", "--band-1", "--band-2", "--band-3", "--band-4"];
start();
let stream = null;
let chosen = null;

async function open() {
  await list();
  document.body.dataset.ready = "true";
}

async function list() {
  const { runs } = await api.get("runs");
  byId("no-runs").hidden = runs.length > 0;
  byId("run-list").replaceChildren(...runs.map((run) => make("li", {}, make("button", { type: "button", "aria-current": String(run.id === chosen), data: { run: run.id }, onclick: () => show(run.id).catch(complain) }, make("span", { class: "name" }, run.name), make("span", { class: run.state === "running" ? "chip good" : "chip" }, run.state), make("span", { class: "small muted number" }, `${short(run.images_seen ?? 0)} images seen${run.updated ? `, ${day(run.updated)}` : ""}`)))));
  if (!chosen && runs.length) await show(runs[0].id);
}

async function show(id) {
  chosen = id;
  for (const one of byId("run-list").querySelectorAll("button")) one.setAttribute("aria-current", String(one.dataset.run === id));
  await draw(id);
  stream?.close();
  stream = new EventSource(address(`api/v1/runs/${encodeURIComponent(id)}/events`));
  let waiting = false;
  const again = () => {
    if (waiting || document.hidden) return;
    waiting = true;
    setTimeout(() => { waiting = false; if (chosen === id) draw(id).catch(complain); }, 2000);
  };
  for (const name of ["change", "metrics", "message"]) stream.addEventListener(name, again);
}

async function draw(id) {
  const run = await api.get(`runs/${encodeURIComponent(id)}`);
  if (chosen !== id) return;
  const { columns = [], rows = [] } = run.metrics ?? {};
  const column = (name) => columns.indexOf(name);
  const line = (name) => rows.filter((row) => Number.isFinite(row[column(name)])).map((row) => [row[column("images_seen")], row[column(name)]]);
  byId("run").replaceChildren(
    make("div", { class: "spread" }, make("h2", {}, run.name), make("span", { class: "row" }, links(run))),
    make("div", { class: "figures" }, figures(run, line)),
    make("div", { class: "charts" },
      chart("Loss by band of timesteps", bands(columns, line)),
      chart("Loss", [{ name: "training", points: line("loss"), colour: "--band-3" }, { name: "held out", points: line("validation"), colour: "--band-0" }]),
      chart("Images a second", [{ name: "rate", points: line("images_per_second"), colour: "--band-1" }]),
      chart("Learning rate", [{ name: "learning rate", points: line("learning_rate"), colour: "--band-2" }], { smooth: false })),
    previews(run) ?? "",
  );
}

/** Up to five groups of neighbouring bands, from the finished image to pure noise. */
function bands(columns, line) {
  const names = columns.filter((name) => /^(bands?[./ ])?\d+-\d+$/.test(name)).sort((a, b) => first(a) - first(b));
  const each = Math.max(1, Math.ceil(names.length / COLOURS.length));
  const groups = [];
  for (let at = 0; at < names.length; at += each) groups.push(names.slice(at, at + each));
  return groups.map((group, at) => {
    const points = group.flatMap(line).sort((a, b) => a[0] - b[0]);
    return { name: `t ${first(group[0])} to ${/-(\d+)$/.exec(group.at(-1))[1]}`, points, colour: COLOURS[at] };
  });
}

function first(name) {
  return Number(/(\d+)-/.exec(name)[1]);
}

function figures(run, line) {
  const total = run.images_total ? ` of ${short(run.images_total)}` : "";
  const all = [["Images seen", `${short(run.images_seen ?? 0)}${total}`], ["Loss", run.loss ?? line("loss").at(-1)?.[1]], ["Images a second", run.rate ?? line("images_per_second").at(-1)?.[1]], ["State", run.state]];
  if (run.goodput !== undefined && run.goodput !== null) all.push(["Goodput", `${Math.round(100 * run.goodput)} %`]);
  return all.filter(([, value]) => value !== undefined && value !== null).map(([name, value]) => make("div", { class: "figure-box" }, make("b", {}, typeof value === "number" ? short(value) : value), make("span", { class: "small muted" }, name)));
}

function links(run) {
  const all = [["Data report", run.report], ["Evaluation", run.evaluation], ["Model card", run.card]];
  return all.filter(([, url]) => url).map(([words, url]) => make("a", { class: "button plain", href: address(url) }, words));
}

function previews(run) {
  const all = run.previews ?? [];
  return all.length ? make("section", { class: "stack" }, make("h2", {}, "Previews"), make("div", { class: "previews" }, all.slice(-24).map((url) => make("img", { src: address(typeof url === "string" ? url : url.url), alt: "Preview of the run", loading: "lazy" })))) : null;
}

open().catch(complain);
