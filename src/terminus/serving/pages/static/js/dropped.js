// Any image dropped on a page, or pasted, is read: what it says of how it was drawn can be recalled.

import { api } from "./api.js";
import { make } from "./dom.js";
import { complain, dialog } from "./messages.js";

/** Listens on `place`; `use(read)` is called when somebody wants the settings that were found. */
export function readDropped(place, use) {
  const take = (file) => file && read(file, use).catch(complain);
  place.addEventListener("dragover", (event) => {
    if ([...event.dataTransfer.items].some((item) => item.kind === "file")) event.preventDefault();
  });
  place.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
}

/** Reads one file and shows what it says. */
export async function read(file, use) {
  const found = await api.send("read", file, file.name || "image.png");
  const request = found.request ?? {};
  const facts = make("dl", { class: "facts" });
  for (const [name, value] of Object.entries(request)) {
    if (value === null || value === "" || (Array.isArray(value) && !value.length)) continue;
    facts.append(make("dt", {}, name), make("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)));
  }
  const known = Object.keys(request).length > 0;
  const notes = (found.notes ?? []).map((note) => make("p", { class: "notice" }, String(note)));
  const content = make("div", { class: "stack" }, make("p", { class: "muted" }, found.source ? `Drawn by ${found.source}.` : "It does not say how it was drawn."), facts, notes);
  const buttons = [{ words: "Close", value: "" }];
  if (known) buttons.unshift({ words: "Recall all", value: "recall", kind: "primary" });
  if ((await dialog("What this image says", content, buttons)) === "recall") use(found);
}
