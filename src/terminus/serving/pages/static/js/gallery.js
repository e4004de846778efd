// The gallery: a wall of all that was drawn, searched, starred, sorted onto boards.

import { remove, star } from "./actions.js";
import { address, api, catalogue } from "./api.js";
import { byId, debounced, icon, make } from "./dom.js";
import { read, readDropped } from "./dropped.js";
import { jobs } from "./live.js";
import { complain, dialog, tell } from "./messages.js";
import { start } from "./shell.js";
import { Viewer } from "./viewer.js";

start();
let images = [];
let cursor = null;
let asked = 0;
let boards = [];
const viewer = new Viewer({ boards: () => boards, onchange: showAll, ondelete: forget });

async function open() {
  const { models } = await catalogue();
  byId("by-model").replaceChildren(make("option", { value: "" }, "every model"), ...models.map((one) => make("option", { value: one.id }, one.title || one.name)));
  await loadBoards();
  const again = debounced(() => search().catch(complain), 180);
  byId("search").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["query", "board", "by-model", "after", "before"]) byId(name).addEventListener("input", again);
  byId("starred").addEventListener("click", () => {
    byId("starred").setAttribute("aria-pressed", String(byId("starred").getAttribute("aria-pressed") !== "true"));
    search().catch(complain);
  });
  byId("boards-button").addEventListener("click", () => editBoards().catch(complain));
  byId("more").addEventListener("click", () => more().catch(complain));
  new IntersectionObserver(([entry]) => entry.isIntersecting && cursor && more().catch(complain)).observe(byId("more"));
  byId("wall").addEventListener("keydown", moveFocus);
  jobs.addEventListener("change", ({ detail }) => detail.name === "finished" && again());
  const recall = (found) => {
    sessionStorage.setItem("terminus.recall", JSON.stringify(found.request));
    location.assign(address("./?recall=read"));
  };
  readDropped(byId("main"), recall);
  byId("read-file").addEventListener("change", () => byId("read-file").files[0] && read(byId("read-file").files[0], recall).catch(complain));
  await search();
  const one = new URLSearchParams(location.search).get("image");
  if (one) viewer.show(images.find((each) => each.id === one) ?? (await api.get(`images/${encodeURIComponent(one)}`)), images);
  document.body.dataset.ready = "true";
}

function query() {
  const values = new URLSearchParams({ limit: "60" });
  const put = (name, value) => value && values.set(name, value);
  put("query", byId("query").value.trim());
  put("model", byId("by-model").value);
  put("board", byId("board").value);
  put("after", secondsAt(byId("after").value));
  put("before", secondsAt(byId("before").value, 1));
  if (byId("starred").getAttribute("aria-pressed") === "true") put("starred", "true");
  return values;
}

/** The beginning of a day, or of one some days after it, in seconds since 1970. */
function secondsAt(day, later = 0) {
  if (!day) return null;
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date + later).getTime() / 1000;
}

async function search() {
  const mine = (asked += 1);
  const answer = await api.get(`images?${query()}`);
  if (mine !== asked) return;
  ({ images, cursor = null } = answer);
  showAll();
}

async function more() {
  if (!cursor) return;
  const values = query();
  values.set("cursor", cursor);
  const mine = asked;
  cursor = null;
  const answer = await api.get(`images?${values}`);
  if (mine !== asked) return;
  images.push(...answer.images);
  cursor = answer.cursor ?? null;
  showAll();
}

function showAll() {
  const kept = new Map([...byId("wall").children].map((item) => [item.dataset.image, item]));
  byId("wall").replaceChildren(...images.map((image) => {
    const item = kept.get(image.id) ?? tile(image);
    showStar(item.querySelector(".star"), image);
    return item;
  }));
  byId("more").hidden = !cursor;
  const filtered = query().size > 1;
  byId("found").textContent = `${images.length}${cursor ? " or more" : ""} ${images.length === 1 ? "image" : "images"}`;
  byId("wall-empty").hidden = images.length > 0;
  byId("wall-empty").querySelector("p").textContent = filtered ? "Nothing was found. Fewer words find more." : "Nothing is drawn yet. What you draw is kept here, as files with their settings in them.";
}

function tile(image) {
  const words = image.prompt || "Image without a prompt";
  const current = () => images.find((one) => one.id === image.id) ?? image;
  const starButton = make("button", { type: "button", class: "star icon-only", onclick: () => star(current()).then((one) => showStar(starButton, one)).catch(complain) }, icon("star"));
  return make("li", { data: { image: image.id } },
    make("button", { type: "button", class: "open", "aria-label": words, onclick: () => viewer.show(current(), images) }, make("img", { src: address(image.thumbnail), alt: "", loading: "lazy", decoding: "async" })),
    starButton, make("p", { "aria-hidden": "true" }, words));
}

function showStar(place, image) {
  place.classList.toggle("starred", Boolean(image.starred));
  place.setAttribute("aria-pressed", String(Boolean(image.starred)));
  place.setAttribute("aria-label", image.starred ? "Take the star off" : "Star");
}

function forget(image) {
  images = images.filter((one) => one.id !== image.id);
  showAll();
  return { onback: () => search().catch(complain) };
}

/** Arrow keys walk over the wall; Delete deletes, S stars. */
function moveFocus(event) {
  const item = event.target.closest("li");
  if (!item) return;
  const items = [...byId("wall").children];
  const columns = getComputedStyle(byId("wall")).gridTemplateColumns.split(" ").length;
  const way = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const image = images.find((one) => one.id === item.dataset.image);
  if (way) {
    event.preventDefault();
    items[items.indexOf(item) + way]?.querySelector(".open").focus();
  } else if (event.key === "Delete" && image) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    remove(image, { onback: () => search().catch(complain) }).then(() => { forget(image); next?.querySelector(".open").focus(); }).catch(complain);
  } else if (event.key === "s" && image) star(image).then(showAll).catch(complain);
}

async function loadBoards() {
  ({ boards } = await api.get("boards"));
  const chosen = byId("board").value;
  byId("board").replaceChildren(make("option", { value: "" }, "every board"), ...boards.map((one) => make("option", { value: one.id }, `${one.name} (${one.images ?? 0})`)));
  byId("board").value = boards.some((one) => one.id === chosen) ? chosen : "";
}

async function editBoards() {
  const name = make("input", { "aria-label": "Name of a new board", placeholder: "A new board", maxlength: 100 });
  const list = make("ul", { class: "stack" });
  const showList = () => list.replaceChildren(...boards.map((one) => make("li", { class: "spread" }, make("span", {}, `${one.name}, ${one.images ?? 0}`), make("button", { type: "button", class: "plain danger", onclick: async () => { await api.remove(`boards/${one.id}`).catch(complain); await loadBoards(); showList(); } }, icon("trash"), "Delete the board"))));
  showList();
  const add = async () => {
    if (!name.value.trim()) return;
    await api.post("boards", { name: name.value.trim() }).catch(complain);
    name.value = "";
    await loadBoards();
    showList();
  };
  name.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(), add(); });
  await dialog("Boards", make("div", { class: "stack" }, make("p", { class: "hint" }, "A board gathers images; deleting it leaves them in the gallery."), list, make("div", { class: "row nowrap" }, name, make("button", { type: "button", class: "primary", onclick: add }, "Add"))));
  await search();
}

open().catch((error) => { complain(error); tell("The gallery could not be read.", { bad: true }); });
