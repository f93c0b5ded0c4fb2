// Run before the page is drawn, so that nobody who chose dark sees a white flash.
try {
  const chosen = localStorage.getItem("antiphon.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage is switched off: the system's setting holds
}
