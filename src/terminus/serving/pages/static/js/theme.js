// Runs before the first paint, so a page never flashes in the other colours. Classic, not a module, for that reason.
(() => {
  const root = document.documentElement;
  const light = matchMedia("(prefers-color-scheme: light)");
  const apply = () => {
    let chosen = null;
    try { chosen = localStorage.getItem("terminus.theme"); } catch { /* storage may be forbidden */ }
    root.dataset.theme = chosen ?? (light.matches ? "light" : "dark");
  };
  apply();
  light.addEventListener("change", apply);
  addEventListener("storage", apply);
})();
