// Loaded before the page is drawn (a plain script in the head), so that the wrong colours never flash.
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return JSON.parse(localStorage.getItem("deepseek-r1.theme") ?? "null");
    } catch {
      return null; // storage is switched off: follow the system
    }
  };
  const apply = () => {
    const choice = stored();
    document.documentElement.dataset.theme =
      choice === "light" || choice === "dark" ? choice : dark.matches ? "dark" : "light";
  };
  apply();
  dark.addEventListener("change", apply);
  window.addEventListener("storage", apply);
  window.addEventListener("themechange", apply);
})();
