// The grid page: two or three axes, and a sheet that fills as the images are drawn.

import { address, api, catalogue } from "./api.js";
import { Axes } from "./axes.js";
import { byId, icon, make, memory } from "./dom.js";
import { jobs } from "./live.js";
import { announce, complain } from "./messages.js";
import { Prompt } from "./prompt.js";
import { Settings } from "./settings.js";
import { tieSettingsSheet } from "./sheet.js";
import { start } from "./shell.js";
import { consented } from "./consent.js";
import { wordsOf } from "./api.js";

start();
/** The grid on the page: {id, axes, cells: [{values, job, image, state}]}. */
let grid = null;
let names = () => "";

async function open() {
  const all = await catalogue();
  const settings = new Settings(all);
  const prompt = new Prompt(() => settings.model?.id, all.adapters);
  const axes = new Axes(all, () => ({ ...settings.request(), ...prompt.request() }));
  names = (field, value) => axes.nameOf(field, value);
  settings.addEventListener("model", () => prompt.refresh());
  byId("reset").addEventListener("click", () => settings.reset());
  byId("cancel").addEventListener("click", () => grid?.cells.forEach((cell) => !cell.image && jobs.cancel(cell.job).catch(() => {})));
  tieSettingsSheet();
  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("form-error").hidden = true;
    try {
      if (!(await consented(settings.model))) return;
      const { adapters, ...words } = prompt.request();
      const own = settings.request();
      const request = { task: "text", ...own, ...words, count: 1, adapters: [...own.adapters, ...adapters] };
      memory.set("grid", request);
      await show((await api.post("grids", { request, axes: axes.request() })).id);
    } catch (error) {
      byId("form-error").hidden = false;
      byId("form-error").textContent = wordsOf(error);
    }
  });
  const last = memory.get("grid") ?? memory.get("draw");
  if (last) prompt.fill(last), settings.fill({ ...last, rescale: last.rescale ?? undefined });
  prompt.refresh();
  const asked = new URLSearchParams(location.search).get("id");
  if (asked) await show(asked);
  document.body.dataset.ready = "true";
}

/** Shows a grid, and fills it. */
async function show(id) {
  grid = await api.get(`grids/${encodeURIComponent(id)}`);
  history.replaceState(null, "", `${location.pathname}?id=${encodeURIComponent(id)}`);
  lay();
  for (const cell of grid.cells) {
    if (cell.image || !cell.job) continue;
    jobs.watch({ id: cell.job, state: "queued" }, (name, data) => {
      if (name === "finished") cell.image = data.images[0];
      if (["started", "finished", "failed", "cancelled"].includes(name)) fill(cell, name);
      showDone();
    });
  }
  showDone();
}

function lay() {
  const [columns, rows, sheets] = grid.axes;
  byId("sheet").replaceChildren(
    make("div", { class: "sheet-head" }, make("p", { class: "legend", id: "legend" }, legend()), make("a", { class: "button plain", href: address(`api/v1/grids/${grid.id}.png`), download: `grid-${grid.id}.png`, id: "sheet-file" }, icon("download"), "Sheet with legend")),
    ...(sheets ? sheets.values : [null]).map((value, at) => table(columns, rows, sheets, value, at)),
  );
}

function legend() {
  return grid.axes.map((axis, at) => `${["Columns", "Rows", "Sheets"][at]}: ${axis.title ?? names(axis.field)}`).join(". ");
}

function table(columns, rows, sheets, sheet, number) {
  const head = make("tr", {}, make("td", { hidden: true }), rows ? make("th", { scope: "col" }) : null, columns.values.map((value) => make("th", { scope: "col" }, names(columns.field, value))));
  const body = (rows ? rows.values : [null]).map((row, y) => make("tr", {}, rows ? make("th", { scope: "row" }, names(rows.field, row)) : null, columns.values.map((value, x) => {
    const cell = grid.cells[(number * (rows?.values.length ?? 1) + y) * columns.values.length + x];
    cell.place = make("td", {});
    fill(cell, cell.state);
    return cell.place;
  })));
  head.firstChild.remove();
  const caption = sheets ? make("caption", {}, make("h2", {}, names(sheets.field, sheet))) : null;
  return make("div", { class: "sheet-wrap", tabindex: "0", role: "region", "aria-label": "Sheet of images" }, make("table", { class: "sheet-table" }, caption, make("thead", {}, head), make("tbody", {}, body)));
}

function fill(cell, state) {
  if (!cell.place) return;
  if (cell.image) {
    const words = cell.values.map((value, at) => names(grid.axes[at].field, value)).join(", ");
    cell.place.replaceChildren(make("a", { href: address(cell.image.url) }, make("img", { src: address(cell.image.url), alt: words })));
  } else {
    cell.place.replaceChildren(make("span", { class: "small muted" }, { failed: "failed", cancelled: "cancelled", started: "…", running: "…" }[state] ?? ""));
  }
}

function showDone() {
  const done = grid.cells.filter((cell) => cell.image).length;
  byId("cancel").hidden = jobs.active.every((job) => !grid.cells.some((cell) => cell.job === job.id));
  byId("sheet-file").hidden = done < grid.cells.length;
  byId("grid-size").textContent = `${done} of ${grid.cells.length} drawn`;
  if (done === grid.cells.length) announce("The grid is drawn");
}

open().catch(complain);
