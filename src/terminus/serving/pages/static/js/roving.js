// A row of buttons as one stop of the Tab key: arrow keys move inside it, so that what follows is never far.

const WAYS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

/** Makes a row rove; `current` is the button to start from. Call it again when the row has changed. */
export function rove(row, current = null) {
  const buttons = [...row.querySelectorAll("button")];
  const reached = buttons.includes(current) ? current : buttons[0];
  for (const one of buttons) one.tabIndex = one === reached ? 0 : -1;
  if (row.dataset.roves) return;
  row.dataset.roves = "true";
  row.addEventListener("keydown", (event) => {
    const all = [...row.querySelectorAll("button")];
    const at = all.indexOf(document.activeElement);
    if (!(event.key in WAYS) || at < 0) return;
    event.preventDefault();
    const next = all[Math.min(all.length - 1, Math.max(0, at + WAYS[event.key]))];
    rove(row, next);
    next.focus();
  });
}
