// Memory: the plan's parts stacked, against what the kernel counts and the budget.
import { mib } from "./format.js";
import { html } from "./html.js";

const ORDER = ["process", "server", "embeddings", "growth", "norms and biases", "key-value cache", "working memory", "read ahead"];
const weights = (name) => name.startsWith("pinned") || name.startsWith("window");

export function Memory({ status }) {
  const parts = Object.entries(status.parts).filter(([, bytes]) => bytes > 0).sort(([a], [b]) => place(a) - place(b));
  const fixed = parts.filter(([name]) => !weights(name)), pinned = parts.filter(([name]) => weights(name));
  const sum = parts.reduce((total, [, bytes]) => total + bytes, 0);
  const holds = Math.max(status.used, sum);
  const ample = status.budget > 2 * holds; // then its line would leave no room for what is in it
  const scale = ample ? 1.15 * holds : 1.06 * Math.max(status.budget, holds);
  const at = (bytes) => ({ left: `${100 * bytes / scale}%` });
  const shades = new Map([...shaded(fixed, "fixed"), ...shaded(pinned, "pinned")]);
  const segment = ([name, bytes]) => html`<span key=${name} class=${shades.get(name)}
    title=${`${name}: ${mib(bytes)} MiB`} style=${{ width: `${100 * bytes / scale}%` }}></span>`;
  const row = ([name, bytes]) => html`<tr key=${name}><th scope="row"><i class=${shades.get(name) ?? "spare"}></i>${
    name.replace("pinned ", "")}</th><td>${mib(bytes)}</td></tr>`;
  return html`<section class="panel memory" aria-labelledby="memory-title">
    <h2 id="memory-title">Memory</h2>
    <p class="reading"><b>${mib(status.used)}</b> MiB
      <span class="of">used, as the kernel counts, of ${mib(status.budget)}</span></p>
    <div class="stack" aria-hidden="true">
      <div class="bar">${fixed.map(segment)}${pinned.map(segment)}</div>
      <div class="used" style=${at(status.used)}></div>
      ${!ample && html`<div class="limit" style=${at(status.budget)}></div>`}
    </div>
    <div class="parts">
      <table><caption>what every budget holds, MiB</caption><tbody>${fixed.map(row)}</tbody></table>
      <table><caption>weights that stay, MiB</caption><tbody>
        ${pinned.map(row)}${row(["left over", Math.max(status.budget - sum, 0)])}</tbody></table>
    </div>
    ${status.window && html`<p class="note beside" title="All processes of this window, as the kernel counts them">
      beside the budget: this window, <b>${mib(status.window)}</b> MiB</p>`}
  </section>`;
}

function place(name) {
  const index = ORDER.indexOf(name);
  return index < 0 ? ORDER.length : index;
}

const shaded = (parts, kind) => parts.map(([name], index) => [name, `part ${kind}-${index % 7}`]);
