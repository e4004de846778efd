// Signing in: the token goes to the server once, as JSON, and comes back as a cookie that no script can read.

import { byId } from "./dom.js";

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("refused").hidden = true;
  const answer = await fetch(new URL("login", document.baseURI), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token: byId("token").value.trim() }),
    credentials: "same-origin",
  }).catch(() => null);
  if (answer?.ok) {
    if (/\/login$/.test(location.pathname)) location.assign(new URL("./", document.baseURI));
    else location.reload();
    return;
  }
  byId("refused").hidden = false;
  byId("refused").textContent = answer ? "This token is not known." : "The server does not answer.";
  byId("token").select();
});
