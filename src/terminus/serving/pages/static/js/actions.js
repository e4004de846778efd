// What can be done with an image, wherever it is shown: stars, other pages, drawing it again, deleting with an undo.

import { address, api } from "./api.js";
import { button, icon, make } from "./dom.js";
import { jobs } from "./live.js";
import { announce, complain, tell } from "./messages.js";

/** Puts a star on an image, or takes it off. */
export async function star(image, starred = !image.starred) {
  Object.assign(image, await api.patch(`images/${image.id}`, { starred }));
  announce(starred ? "Starred" : "Star taken off");
  return image;
}

/** Deletes an image, and offers to bring it back. */
export async function remove(image, { onback = () => {} } = {}) {
  await api.remove(`images/${image.id}`);
  const back = () => api.post(`images/${image.id}/restore`).then(onback).catch(complain);
  tell("Deleted.", { action: { words: "Undo", run: back } });
}

/** Draws the image once more and says whether every pixel is equal. */
async function drawAgain(image) {
  const job = await api.post(`images/${image.id}/again`);
  tell("Drawing it again …", { stay: 2500 });
  const data = await jobs.finished(job);
  const again = data.again ?? (await api.get(`jobs/${job.id}`)).again ?? {};
  const words = again.equal
    ? "Drawn again: every pixel is equal."
    : `Drawn again: ${again.differing ?? "some"} values differ, by ${again.largest ?? "?"} at most. ${again.why ?? ""}`;
  tell(words, { stay: 15000, bad: again.equal === false });
  return again;
}

/** The row of buttons for one image. `onrecall`, `ondelete` and `onback` are what the page does then. */
export function actions(image, { onrecall = null, ondelete = () => {}, onback = () => {} } = {}) {
  const starButton = button("Star", "star", async () => {
    await star(image).catch(complain);
    showStar();
  }, { bare: true });
  const showStar = () => {
    starButton.setAttribute("aria-pressed", String(Boolean(image.starred)));
    starButton.classList.toggle("starred", Boolean(image.starred));
  };
  showStar();
  const to = (words, symbol, task) => make("a", { class: "button plain", href: `canvas?image=${encodeURIComponent(image.id)}&task=${task}` }, icon(symbol), words);
  const recall = onrecall
    ? button("Recall", "recall", () => onrecall(image), { title: "Take all its settings" })
    : make("a", { class: "button plain", href: `./?recall=${encodeURIComponent(image.id)}`, title: "Take all its settings" }, icon("recall"), "Recall");
  return [
    starButton,
    recall,
    to("Canvas", "brush", "inpaint"),
    to("Image to image", "image", "image"),
    to("Upscale", "enlarge", "upscale"),
    button("Draw again", "again", () => drawAgain(image).catch(complain), { title: "Is every pixel equal?" }),
    make("a", { class: "button plain icon-only", href: address(image.url), download: `${image.id}.png`, "aria-label": "Download", title: "Download" }, icon("download")),
    button("Delete", "trash", () => remove(image, { onback }).then(() => ondelete(image)).catch(complain), { bare: true }),
  ];
}
