// Licences with restrictions are shown before a model or an adapter is used for the first time.

import { api } from "./api.js";
import { make } from "./dom.js";
import { dialog } from "./messages.js";

/** Whether somebody has agreed, now or before, to what the licence asks; the server remembers it. */
export async function consented(thing) {
  if (!thing.needs_consent) return true;
  const restrictions = [thing.restrictions ?? []].flat().filter(Boolean);
  const content = make("div", { class: "stack" },
    make("p", {}, `${thing.title || thing.name} is licensed under ${thing.licence ?? "terms that its file does not state"}.`),
    make("ul", { class: "small" }, restrictions.map((one) => make("li", {}, one))));
  const answer = await dialog("Before you use it", content, [{ words: "I will keep to this", value: "yes", kind: "primary" }, { words: "Not now", value: "no" }]);
  if (answer !== "yes") return false;
  await api.post(`models/${encodeURIComponent(thing.id)}/consent`);
  thing.needs_consent = false;
  return true;
}
