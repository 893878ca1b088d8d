// The budget: a slider from the smallest that works to the whole model in memory. Moving it loads the model again in
// place and asks the last question again: the answer stays, the speed moves.
import { fromMib, percent, rate, wholeMib } from "./format.js";
import { html, useState, useStores } from "./html.js";

const GROWN = 8;
/** MiB by which a process that has answered was seen to be larger than the one that `smallest` was reckoned for. */

export function Budget({ conversations, asking, instrument }) {
  useStores(conversations, asking, instrument);
  const [chosen, setChosen] = useState(null);
  const [again, setAgain] = useState(true);
  const { status } = instrument;
  if (!status?.budget || !status.layers.length) return null; // one that llama.cpp runs has none that could move
  const conversation = conversations.current, message = asking.last(conversation);
  const low = Math.ceil(status.smallest / fromMib(1)) + GROWN;
  const high = Math.max(Math.ceil(status.whole / fromMib(1)), low);
  const current = wholeMib(status.budget); // it may be more than the model needs
  const shown = chosen ?? current;
  const busy = instrument.loading;
  const set = async (count) => {
    asking.stop();
    const ready = await instrument.reload(fromMib(count));
    setChosen(null);
    if (ready && again && conversations.current === conversation && asking.last(conversation)) {
      await asking.again(conversation);
    }
  };
  return html`<section class="panel budget" aria-labelledby="budget-title" aria-busy=${busy}>
    <h2 id="budget-title">Memory budget</h2>
    <p class="reading large"><b>${shown}</b> MiB
      <span class="of">${busy ? "loading"
        : shown === current ? position(shown, low, high) : `now ${current}`}</span></p>
    <input type="range" min=${low} max=${high} step="1" value=${shown} disabled=${busy}
      aria-label="Memory budget in MiB" aria-valuetext=${`${shown} MiB`}
      style=${{ "--share": `${high > low ? 100 * Math.min((shown - low) / (high - low), 1) : 100}%` }}
      onInput=${(event) => setChosen(Number(event.target.value))}
      onChange=${(event) => set(Number(event.target.value))} />
    <div class="ends" aria-hidden="true"><span>${low}<small>smallest</small></span>
      <span>${high}<small>whole model</small></span></div>
    ${instrument.refused && html`<p class="error" role="alert">${instrument.refused}</p>`}
    ${status.state === "failed" && html`<p class="error" role="alert">${status.error
      ?? "The model could not be loaded with this budget; choose another."}</p>`}
    <label class="again"><input type="checkbox" checked=${again} onChange=${(event) => setAgain(event.target.checked)} />
      ask the last question again</label>
    ${message && (message.runs || message.speed)
      && html`<${Runs} message=${message} running=${asking.running}
      instrument=${instrument} />`}
  </section>`;
}

function position(shown, low, high) {
  if (shown >= high) return "the whole model";
  return shown <= low ? "the smallest that works" : `${percent(shown / high)} of what the whole model takes`;
}

/** The last question at each budget that it was asked with. */
function Runs({ message, running, instrument }) {
  const runs = message.runs ?? [{ budget: message.budget, speed: message.speed, same: true }];
  const live = message.check && running?.message === message
    ? [{ budget: message.check.budget, speed: instrument.now.speed, live: true }] : [];
  const rows = [...runs.slice(-(6 - live.length)), ...live];
  const most = Math.max(...rows.map((run) => run.speed ?? 0), 1e-9);
  return html`<table class="runs"><caption>The last question</caption>
    <thead class="offscreen"><tr><th>Budget</th><th>Speed</th><th>Tokens/s</th><th>Answer</th></tr></thead><tbody>
    ${rows.map((run, index) => html`<tr key=${index} class=${run.live ? "live" : ""}>
      <th scope="row">${run.budget ? wholeMib(run.budget) : "–"}</th>
      <td class="speed-bar"><span style=${{ width: `${100 * (run.speed ?? 0) / most}%` }}></span></td>
      <td>${run.speed ? rate(run.speed) : "–"}</td>
      <td class="verdict">${verdict(run, index)}</td></tr>`)}
  </tbody></table>`;
}

function verdict(run, index) {
  if (run.live) return "comparing";
  if (!run.same) return html`<strong class="differs">differs</strong>`;
  return index === 0 ? "first" : html`<strong class="same">same answer</strong>`;
}
