// Elements from plain data. Text goes in as text nodes alone: nothing that a user wrote is ever read as markup.

const SPRITE = new URL("../icons.svg", import.meta.url).href;
const SVG = "http://www.w3.org/2000/svg";

/** The element with this id; an error names the one that a template lacks. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no element #${id}`);
  return found;
}

/** A new element. `properties` are attributes; `on...` are listeners, `class` and `data` what they say. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A symbol of the sprite, for eyes alone. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${SPRITE}#${name}`);
  drawing.append(use);
  return drawing;
}

/** An element of SVG with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** A button with an icon, and words beside it or, with `bare`, read aloud only. */
export function button(words, symbol, onclick, { bare = false, kind = "plain", ...more } = {}) {
  const names = bare ? { "aria-label": words, title: words, class: `${kind} icon-only` } : { class: kind };
  return make("button", { type: "button", onclick, ...names, ...more }, symbol && icon(symbol), bare ? null : words);
}

/** Calls `action` once nobody has asked for it again within `wait` milliseconds. */
export function debounced(action, wait = 200) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/** "3.4 MB" */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) [count, unit] = [count / 1000, unit + 1];
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

/** "1:05 min" or "8 s" */
export function seconds(count) {
  if (count === null || count === undefined) return "";
  const whole = Math.max(0, Math.round(count));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
  return `${Math.floor(whole / 3600)}:${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} h`;
}

/** A date as the reader's system writes it; Unix seconds or ISO. */
export function day(when) {
  if (when === null || when === undefined) return "";
  const date = new Date(typeof when === "number" ? when * 1000 : when);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Remembers small things in this browser; forgets silently where that is forbidden. */
export const memory = {
  get(name, otherwise = null) {
    try {
      const text = localStorage.getItem(`terminus.${name}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`terminus.${name}`, JSON.stringify(value));
    } catch { /* full, or forbidden: the page works without */ }
  },
};
