// The dashboard: what the memory budget holds, what the disk brings, how fast it goes, and the budget itself.
import { Budget } from "./budget.js";
import { gigabytes, mib, percent, rate, tenths } from "./format.js";
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
      <div class="twin">
        <section class="panel" aria-labelledby="flash-title">
          <h2 id="flash-title">Flash</h2>
          <p class="reading"><b>${gigabytes(now.reading)}</b> GB/s</p>
          <${Plot} instrument=${instrument} label="Flash, GB/s, the last half minute" scale=${1e9}
            value=${(sample) => sample.reading} limit=${status.streaming.bandwidth} />
          <p class="note">${status.streaming.bandwidth
            ? html`<i class="dashed"></i>the disk: ${gigabytes(status.streaming.bandwidth)}` : "all is in memory"}</p>
          ${status.experts?.needed > 0 && html`<p class="note">experts in memory: <b>${
            percent(1 - status.experts.missed / status.experts.needed)}</b>${status.experts.guessed > 0
            ? html`, guessed right: <b>${percent(status.experts.right / status.experts.guessed)}</b>` : ""}</p>`}
          ${status.left_out && html`<p class="note">left out: ${status.left_out.of === "experts"
            ? html`experts below <b>${tenths(status.left_out.threshold)}</b> of a token's weight`
            : html`neurons less than <b>${tenths(status.left_out.threshold)}</b> likely to be active`}, which costs <b>${tenths(status.left_out.loss_per_token)}</b></p>`}
        </section>
        <section class="panel" aria-labelledby="speed-title">
          <h2 id="speed-title">Speed</h2>
          <p class="reading"><b>${rate(now.speed)}</b> tokens/s</p>
          <${Plot} instrument=${instrument} label="Tokens a second, the last half minute" scale=${1}
            value=${(sample) => sample.speed} />
          <p class="note">${status.drafted > 0
            ? html`drafts accepted: <b>${percent(status.accepted / status.drafted)}</b>` : "no drafts so far"}</p>
          <div class="accepted" aria-hidden="true"><span style=${{
            width: `${100 * status.accepted / Math.max(status.drafted, 1)}%` }}></span></div>
        </section>
      </div>
      <${Layers} status=${status} />
      <p class="small">${status.threads} threads · context ${status.context} tokens${
        status.queue ? ` · ${status.queue} waiting` : ""} · machine ${mib(status.memory_total)} MiB</p>`
      : html`<p class="small">${instrument.trouble
        || (instrument.chooser && (status.state === "failed" || instrument.chooser.choosing?.cancellable)
          ? "No model is loaded." : "Loading the model")}</p>`}
  </aside>`;
}
