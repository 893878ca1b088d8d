// Line icons, drawn for this page.
import { html } from "./html.js";

const PATHS = {
  menu: "M3 5h14M3 10h14M3 15h14",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5L5 15",
  send: "M10 16V4M5 9l5-5 5 5",
  copy: "M7 7V4h9v9h-3M4 7h9v9H4z",
  edit: "M4 16l1-4 8-8 3 3-8 8zM11.5 5.5l3 3",
  retry: "M16 10a6 6 0 1 1-2-4.5M16 3v3.5h-3.5",
  settings: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
  theme: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  gauge: "M3 15a7 7 0 1 1 14 0M10 15l4-6",
  trash: "M4 6h12M8 6V4h4v2M6 6l1 11h6l1-11",
  choose: "M6 8l4 4 4-4",
  check: "M4 10.5l4 4 8-9",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
  ${name === "stop" ? html`<rect x="5" y="5" width="10" height="10" rx="1.5" fill="currentColor" stroke="none" />`
    : html`<path d=${PATHS[name]} />`}</svg>`;

export const IconButton = ({ name, label, className = "", ...more }) => html`<button type="button"
  class=${`icon-button ${className}`} aria-label=${label} title=${label} ...${more}><${Icon} name=${name} /></button>`;
