// Where the system has no language (LANG=C, as programs that services start have it), WebKitGTK calls it "C", which is
// no language for Intl: what formats numbers by it fails, uPlot first.
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  Object.defineProperty(navigator, "language", { value: "en", configurable: true });
}
