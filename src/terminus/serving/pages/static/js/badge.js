// The badge of a model: what it predicts, whether its noise ends in pure noise, how we know, and what to beware of.

import { bytes, byId, icon, make } from "./dom.js";

/** One line of chips, and the reasons for whoever opens it. */
export function showBadge(model) {
  byId("badge-line").replaceChildren(...chips(model));
  byId("badge-body").replaceChildren(...reasons(model));
}

/** Chips that say what a model is. */
export function chips(model) {
  const known = model.prediction && model.prediction !== "unknown";
  const parts = [make("span", { class: known ? "chip" : "chip warn" }, known ? `${model.prediction} prediction` : "prediction unknown")];
  parts.push(make("span", { class: model.zero_terminal_snr ? "chip good" : "chip" }, model.zero_terminal_snr ? "zero terminal SNR" : "leaky schedule"));
  if (model.warnings?.length) parts.push(make("span", { class: "chip warn" }, icon("warning"), `${model.warnings.length} to know`));
  return parts;
}

/** What the chips mean, and the evidence for it. */
export function reasons(model) {
  const sentence = model.zero_terminal_snr
    ? "Its noise ends in pure noise, so black can be black and white can be white."
    : "Its noise never quite hides the image, so the darkest and the lightest images are out of reach.";
  const parts = [make("p", { class: "hint" }, sentence)];
  for (const warning of model.warnings ?? []) parts.push(make("p", { class: "notice" }, icon("warning"), make("span", {}, warning)));
  const facts = make("dl", { class: "facts" });
  const fact = (name, value) => value && facts.append(make("dt", {}, name), make("dd", {}, value));
  const evidence = (model.evidence ?? []).map((one) => make("div", {}, typeof one === "string" ? one : `${one.source}: ${one.says}`));
  fact("How we know", evidence.length ? make("div", {}, evidence) : null);
  fact("Learnt at", model.native_size && `${model.native_size} × ${model.native_size} pixels`);
  fact("Licence", model.licence ?? "not stated");
  fact("Hash", model.hash && make("code", {}, String(model.hash).slice(0, 10)));
  fact("Size", model.size_bytes && bytes(model.size_bytes));
  return [...parts, facts];
}
