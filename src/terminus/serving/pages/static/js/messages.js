// Short messages at the foot of the page, said aloud too, and questions that a dialog asks.

import { wordsOf } from "./api.js";
import { button, byId, make } from "./dom.js";

/** For screen readers alone. */
export function announce(words) {
  byId("announcer").textContent = words;
}

/** A message that goes by itself; `action` is {words, run}, for an undo. */
export function tell(words, { action = null, bad = false, stay = 6000 } = {}) {
  const close = () => message.remove();
  const message = make("div", { class: bad ? "toast bad" : "toast", role: bad ? "alert" : "status" }, make("span", {}, words));
  if (action) message.append(button(action.words, null, () => { close(); action.run(); }));
  message.append(button("Close this message", "close", close, { bare: true }));
  byId("toasts").append(message);
  while (byId("toasts").children.length > 3) byId("toasts").firstChild.remove();
  setTimeout(close, action ? Math.max(stay, 9000) : stay);
  return message;
}

/** An error, in words. */
export function complain(error) {
  tell(wordsOf(error), { bad: true, stay: 12000 });
}

/** A dialog with a title and anything inside; resolves when it has been closed, with the value of the button. */
export function dialog(title, content, buttons = [{ words: "Close", value: "close" }], kind = "sheet") {
  return new Promise((resolve) => {
    const id = `dialog-${crypto.randomUUID()}`;
    const box = make("dialog", { class: kind, "aria-labelledby": id }, make("h2", { id }, title), content);
    const foot = make("div", { class: "row" });
    for (const one of buttons) {
      foot.append(make("button", { type: "button", class: one.kind ?? "", onclick: () => box.close(one.value) }, one.words));
    }
    box.append(foot);
    box.addEventListener("click", (event) => event.target === box && box.close(""));
    box.addEventListener("close", () => { box.remove(); resolve(box.returnValue); });
    document.body.append(box);
    box.close_with = (value) => box.close(value);
    box.showModal();
  });
}
