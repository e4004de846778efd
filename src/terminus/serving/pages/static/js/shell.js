// What every page has: the colours, the queue, the state of the server.

import { api, address } from "./api.js";
import { button, byId, icon, make, seconds } from "./dom.js";
import { jobs } from "./live.js";
import { complain } from "./messages.js";

/** Starts the parts that surround a page; every page calls it first. */
export function start() {
  byId("theme-button").addEventListener("click", turnLights);
  const drawer = byId("queue");
  byId("queue-button").addEventListener("click", () => drawer.showModal());
  drawer.querySelector("[data-close]").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  jobs.addEventListener("change", showQueue);
  jobs.open();
  watchServer();
}

function turnLights() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
  try {
    localStorage.setItem("terminus.theme", root.dataset.theme);
  } catch { /* then for this page only */ }
}

const rows = new Map();
let pending = false;

/** At most once per frame, however many events arrive. */
function showQueue() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    const active = jobs.active;
    byId("queue-count").textContent = String(active.length);
    byId("queue-button").classList.toggle("busy", active.length > 0);
    byId("queue-summary").textContent = active.length ? summary(active) : "Nothing waits. What you draw shows up here.";
    if (!byId("queue").open && active.length === 0 && rows.size === 0) return;
    const over = [...jobs.known.values()].filter((job) => !active.includes(job));
    const latest = over.sort((one, other) => (other.created ?? 0) - (one.created ?? 0)).slice(0, 5);
    const shown = [...active, ...latest];
    for (const [id, row] of rows) if (!shown.some((job) => job.id === id)) { row.remove(); rows.delete(id); }
    for (const job of shown) showRow(job);
    byId("queue-list").append(...shown.map((job) => rows.get(job.id)).filter((row, at) => byId("queue-list").children[at] !== row));
  });
}

function summary(active) {
  const last = active.at(-1);
  const left = last.seconds_left ? `, about ${seconds(last.seconds_left)} in all` : "";
  return `${active.length} ${active.length === 1 ? "job" : "jobs"}${left}`;
}

function showRow(job) {
  let row = rows.get(job.id);
  if (!row) {
    row = make("li", { class: "job" }, make("span", { class: "blank" }), make("div", {}, make("p", { class: "what" }), make("p", { class: "small muted number how" })), make("span", { class: "do" }), make("div", { class: "bar" }, make("i")));
    rows.set(job.id, row);
  }
  row.querySelector(".what").textContent = job.request?.prompt || (job.request?.task === "upscale" ? "Upscale" : "without a prompt");
  row.querySelector(".how").textContent = describe(job);
  const running = job.state === "running" && job.steps;
  row.querySelector(".bar").hidden = !running;
  if (running) row.querySelector(".bar i").style.width = `${(100 * job.step) / job.steps}%`;
  const seen = job.previews?.[0] ?? (job.images?.[0] && address(job.images[0].thumbnail));
  if (seen) {
    const image = row.querySelector("img") ?? make("img", { alt: "" });
    if (image.getAttribute("src") !== seen) image.src = seen;
    if (!image.parentNode) row.firstChild.replaceWith(image);
  }
  const waiting = job.state === "queued" || job.state === "running";
  const place = row.querySelector(".do");
  if (waiting && !place.firstChild) place.append(button("Cancel this job", "close", () => jobs.cancel(job.id).catch(complain), { bare: true }));
  if (!waiting) place.replaceChildren(job.state === "finished" ? icon("check") : "");
}

function describe(job) {
  if (job.state === "queued") {
    const place = job.position ? `place ${job.position}` : "waits";
    return job.seconds_left ? `${place}, about ${seconds(job.seconds_left)}` : place;
  }
  if (job.state === "running") return job.steps ? `step ${job.step ?? 0} of ${job.steps}` : "begins";
  if (job.state === "failed") return job.error?.message ?? "failed";
  return { finished: "done", cancelled: "cancelled" }[job.state] ?? job.state;
}

/** Says when the server loads or drains; asks often only until it is ready. */
async function watchServer() {
  const place = byId("state");
  const { state, message } = await api.get("status").catch(() => ({ state: "away" }));
  const words = { loading: "loading the model", draining: "the server is stopping", failed: "the model did not load", away: "no answer from the server" };
  place.hidden = !(state in words);
  place.textContent = words[state] ?? "";
  place.title = message ?? "";
  place.className = state === "loading" ? "chip warn" : "chip bad";
  setTimeout(watchServer, state in words ? 1200 : 20000);
}
