// On a phone the settings are a sheet that comes up from below.

import { byId } from "./dom.js";

/** Ties the buttons that open and close the sheet. */
export function tieSettingsSheet() {
  const [panel, opener] = [byId("settings"), byId("open-settings")];
  const show = (open) => {
    panel.classList.toggle("open", open);
    opener.setAttribute("aria-expanded", String(open));
    (open ? byId("close-settings") : opener).focus();
  };
  opener.addEventListener("click", () => show(!panel.classList.contains("open")));
  byId("close-settings").addEventListener("click", () => show(false));
  panel.addEventListener("keydown", (event) => event.key === "Escape" && panel.classList.contains("open") && show(false));
}
