"use strict";
// The theme: the system's, light or dark. Remembered where the browser lets a page remember.
(() => {
  const button = document.getElementById("theme"), root = document.documentElement;
  const modes = ["system", "light", "dark"];
  let mode = "system";
  const show = () => {
    if (mode === "system") delete root.dataset.theme; else root.dataset.theme = mode;
    button.textContent = "Theme: " + mode;
  };
  try { mode = modes.includes(localStorage.theme) ? localStorage.theme : mode; } catch { /* no storage: forgets */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    mode = modes[(modes.indexOf(mode) + 1) % modes.length];
    try { localStorage.theme = mode; } catch { /* as above */ }
    show();
  });
  show();
})();
