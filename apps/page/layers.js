// The strip of layers: how much of each stays in memory, the rest is streamed; and the one that is being read.
import { percent } from "./format.js";
import { html } from "./html.js";

export function Layers({ status }) {
  const { layers, reading } = status;
  if (!layers?.length) return null;
  const mean = layers.reduce((sum, layer) => sum + layer.pinned, 0) / layers.length;
  return html`<section class="panel" aria-labelledby="layers-title">
    <h2 id="layers-title">Layers</h2>
    <p class="reading"><b>${percent(mean)}</b><span class="of">${mean < 1
       ? `of the weights of ${layers.length} layers are in memory`
      : `of ${layers.length} layers, nothing is streamed`}</span></p>
    <div class="layers" role="img" aria-label=${`${percent(mean)} of the weights of ${layers.length} layers in memory`}>
      ${layers.map((layer, index) => html`<span key=${index} class=${index === reading ? "being-read" : ""}
        title=${`Layer ${index}: ${percent(layer.pinned)} in memory`}><i
          style=${{ height: `${100 * layer.pinned}%` }}></i></span>`)}
    </div>
    <div class="legend" aria-hidden="true"><span><i class="key pinned"></i>pinned</span>
      <span><i class="key streamed"></i>streamed</span><span><i class="key now"></i>being read</span></div>
  </section>`;
}
