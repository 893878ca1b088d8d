// The dashboard: what the memory budget holds, what the disk brings, how fast it goes, and the budget itself.
import { Budget } from "./budget.js";
import { gigabytes, mib, percent, rate } from "./format.js";
import { html, useStores } from "./html.js";
import { Layers } from "./layers.js";
import { Memory } from "./memory.js";
import { Plot } from "./plot.js";

export function Dashboard({ conversations, asking, instrument }) {
  useStores(instrument);
  const { status, now } = instrument;
  return html`<aside class="dashboard" aria-label="Dashboard">
    <${Budget} conversations=${conversations} asking=${asking} instrument=${instrument} />
    ${status?.budget ? html`
      <${Memory} status=${status} />
      <section class="panel" aria-labelledby="flash-title">
        <h2 id="flash-title">Flash</h2>
        <p class="reading"><b>${gigabytes(now.reading)}</b> GB/s
          <span class="of">${status.streaming.bandwidth
            ? html`of ${gigabytes(status.streaming.bandwidth)} that the disk can` : "nothing is read: all is in memory"}</span></p>
        <${Plot} instrument=${instrument} label="Flash, GB/s, the last minute" scale=${1e9}
          value=${(sample) => sample.reading} limit=${status.streaming.bandwidth} />
      </section>
      <section class="panel" aria-labelledby="speed-title">
        <h2 id="speed-title">Speed</h2>
        <p class="reading"><b>${rate(now.speed)}</b> tokens/s
          <span class="of">${drafts(status)}</span></p>
        <${Plot} instrument=${instrument} label="Tokens a second, the last minute" scale=${1}
          value=${(sample) => sample.speed} />
        ${status.drafted > 0 && html`<div class="accepted" role="img"
          aria-label=${`${percent(status.accepted / status.drafted)} of the drafts accepted`}>
          <span style=${{ width: `${100 * status.accepted / status.drafted}%` }}></span></div>`}
      </section>
      <${Layers} status=${status} />
      <p class="small">${status.threads} threads · context ${status.context} tokens${
        status.queue ? ` · ${status.queue} waiting` : ""} · machine ${mib(status.memory_total)} MiB</p>`
      : html`<p class="small">${instrument.trouble || "Loading the model"}</p>`}
  </aside>`;
}

const drafts = (status) => status.drafted > 0
  ? html`drafts accepted: <b>${percent(status.accepted / status.drafted)}</b> of ${status.drafted}`
  : "no drafts so far";
