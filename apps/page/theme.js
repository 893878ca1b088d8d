// Dark or light, before anything is drawn: what was chosen, or what the system prefers.
(() => {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("edgert.theme"); } catch { return null; } };
  const show = () => {
    document.documentElement.dataset.theme = chosen() ?? (prefersDark.matches ? "dark" : "light");
    dispatchEvent(new Event("themechange"));
  };
  prefersDark.addEventListener("change", show);
  addEventListener("storage", show);
  globalThis.toggleTheme = () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    const system = prefersDark.matches ? "dark" : "light";
    try {
      if (theme === system) localStorage.removeItem("edgert.theme"); else localStorage.setItem("edgert.theme", theme);
    } catch { /* no storage: until the page is left */ }
    document.documentElement.dataset.theme = theme;
    dispatchEvent(new Event("themechange"));
  };
  show();
})();
