// Choosing a model: those that are on this machine, and those that can be fetched; and how far that is.
import { ApiError, cancelChoice, choose, models } from "./api.js";
import { megabytes, percent } from "./format.js";
import { html, useEffect, useRef, useState, useStores } from "./html.js";
import { IconButton } from "./icons.js";

const BYTES = { fetching: "downloading", assembling: "putting together", checking: "checking" };

/** What is done with a model now, and how much of that: [what, how much]. */
function told({ doing, done, total }) {
  if (doing === "converting") return [doing, percent(done / total)];
  return BYTES[doing] ? [BYTES[doing], `${megabytes(done)} of ${megabytes(total)}`] : [doing, ""];
}

/** Does something of the server's, and returns what went wrong, in one sentence. */
async function tried(instrument, action) {
  try {
    await action();
    return "";
  } catch (error) {
    instrument.heard(error);
    return error instanceof ApiError ? error.message : "What the server says cannot be read.";
  }
}

function Progress({ choosing, instrument }) {
  const [what, amount] = told(choosing);
  return html`<div class="choosing-progress">
    <progress aria-label=${`${choosing.name}: ${what}`} max=${choosing.total || 1}
      value=${choosing.total ? choosing.done : undefined}></progress>
    <span><span role="status">${what}</span> ${amount}</span>
    ${choosing.cancellable && html`<button type="button" class="plain"
      onClick=${() => tried(instrument, cancelChoice)}>Cancel</button>`}
  </div>`;
}

/** Above the conversation, while a model is on its way, or after that has failed. */
export function ChoosingStrip({ instrument, openChooser }) {
  useStores(instrument);
  const { chooser, status } = instrument;
  if (!chooser) return null;
  const { choosing, error } = chooser;
  if (choosing) {
    return html`<section class="choosing" aria-label="The model that was chosen">
      <b>${choosing.name}</b><${Progress} choosing=${choosing} instrument=${instrument} /></section>`;
  }
  const trouble = error ?? (status.state === "failed" ? status.error : null);
  return trouble && html`<section class="choosing failed" aria-label="The model that was chosen">
    <p class="error" role="alert">${trouble}</p>
    <button type="button" class="plain" onClick=${openChooser}>Choose a model</button>
    ${error && html`<${IconButton} name="close" label="Do not show this any more"
      onClick=${() => tried(instrument, cancelChoice)} />`}
  </section>`;
}

/** In place of the conversation, before there has been any model. */
export function NoModelYet({ instrument }) {
  const { choosing } = instrument.chooser;
  if (!choosing?.cancellable) {
    return html`<section class="empty"><h1>edgert</h1>
      <p>${instrument.loading ? "Loading the model." : "No model is loaded."}</p></section>`;
  }
  return html`<section class="empty"><h1>${choosing.name}</h1>
    <p>This model is being fetched and prepared for this machine, this once.
      It then answers here, without a network.</p>
  </section>`;
}

export function Chooser({ instrument, close }) {
  useStores(instrument);
  const dialog = useRef(null);
  const [list, setList] = useState(null);
  const [refused, setRefused] = useState("");
  const { chooser, status } = instrument;
  useEffect(() => dialog.current.showModal(), []);
  useEffect(() => {
    tried(instrument, async () => setList(await models())).then(setRefused);
  }, [chooser.choosing?.id, status.model, status.state]);
  const take = async (model) => {
    const trouble = await tried(instrument, () => choose(model.id));
    setRefused(trouble);
    if (!trouble && model.size !== null) dialog.current?.close();
  };
  const trouble = refused || chooser.error;
  return html`<dialog ref=${dialog} class="settings chooser" onClose=${close} aria-labelledby="chooser-title"
      onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <div class="settings-body">
      <header><h2 id="chooser-title">Models</h2>
        <${IconButton} name="close" label="Close" onClick=${() => dialog.current.close()} /></header>
      ${trouble && html`<p class="error" role="alert">${trouble}</p>`}
      <ul class="choices" aria-busy=${list === null}>
        ${(list ?? []).map((model) => html`<${Choice} key=${model.id} model=${model} instrument=${instrument}
          take=${() => take(model)} />`)}
      </ul>
    </div>
  </dialog>`;
}

function Choice({ model, instrument, take }) {
  const { choosing } = instrument.chooser;
  const here = model.size !== null, isChosen = choosing?.id === model.id;
  const act = model.current ? null : here ? "Use" : model.here ? "Go on" : "Download";
  return html`<li class=${model.current ? "current" : ""} aria-current=${model.current ? "true" : undefined}>
    <div class="choice">
      <b title=${here ? model.id : undefined}>${model.name}</b>
      <span class="sizes">${sizes(model)}</span>
      ${model.description && html`<small>${model.description}</small>`}
      ${isChosen && html`<${Progress} choosing=${choosing} instrument=${instrument} />`}
    </div>
    ${model.current && html`<span class="now">in use</span>`}
    ${act && !isChosen && html`<button type="button" class=${here ? "primary" : "plain"} onClick=${take}
      disabled=${Boolean(choosing)} aria-label=${`${act}: ${model.name}`}>${act}</button>`}
  </li>`;
}

/** What has to come, and what it takes: a download stays beside the bundle that is made of it, which is no larger. */
function sizes({ size, download, here }) {
  if (size !== null) return `${megabytes(size)} on disk`;
  const coming = here >= download ? "downloaded, to be converted" : here
    ? `${megabytes(download - here)} of ${megabytes(download)} to download` : `${megabytes(download)} to download`;
  return `${coming} · up to ${megabytes(2 * download)} on disk`;
}
