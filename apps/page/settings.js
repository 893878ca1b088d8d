// The conversation's settings: system prompt and sampling. New conversations begin with those used last.
import { DEFAULTS } from "./conversations.js";
import { html, useEffect, useRef, useStores } from "./html.js";
import { IconButton } from "./icons.js";

const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the most likely token"],
  ["top_p", "Top p", 0, 1, 0.01, "the most likely tokens that together reach this probability"],
  ["top_k", "Top k", 0, 1000, 1, "so many of the most likely tokens; 0 for all"],
  ["min_p", "Min p", 0, 1, 0.01, "tokens at least this fraction as likely as the most likely"],
  ["repetition_penalty", "Repetition penalty", 0.5, 2, 0.05, "above 1 makes recent tokens less likely"],
];
const OPTIONAL = [
  ["seed", "Seed", "random", 2 ** 32 - 1, "the same seed gives the same answer"],
  ["max_tokens", "Most tokens", "no limit", 1e6, "of an answer"],
];

export function Settings({ conversations, close }) {
  useStores(conversations);
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const conversation = conversations.current, settings = conversation.settings;
  const set = (name, value) => conversations.setSettings(conversation, { ...settings, [name]: value });
  const number = (name, low, high, whole) => (event) => {
    const { value } = event.target;
    if (value === "") return set(name, name in { seed: 0, max_tokens: 0 } ? null : DEFAULTS[name]);
    const given = Number(value);
    if (!Number.isFinite(given)) return undefined;
    return set(name, Math.min(Math.max(whole ? Math.round(given) : given, low), high));
  };
  return html`<dialog ref=${dialog} class="settings" onClose=${close} aria-labelledby="settings-title"
      onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <form method="dialog" class="settings-body">
      <header><h2 id="settings-title">Settings of this conversation</h2>
        <${IconButton} name="close" label="Close" onClick=${() => dialog.current.close()} /></header>
      <label class="wide">System prompt
        <textarea rows="4" value=${settings.system} placeholder="What the model is told before the conversation"
          onInput=${(event) => set("system", event.target.value)}></textarea></label>
      <div class="fields">
        ${NUMBERS.map(([name, label, low, high, step, help]) => html`<label key=${name} title=${help}>${label}
          <input type="number" inputmode="decimal" min=${low} max=${high} step=${step} value=${settings[name]}
            onChange=${number(name, low, high, step === 1)} /><small>${help}</small></label>`)}
        ${OPTIONAL.map(([name, label, none, high, help]) => html`<label key=${name} title=${help}>${label}
          <input type="number" inputmode="numeric" min=${name === "seed" ? 0 : 1} max=${high} step="1"
            placeholder=${none} value=${settings[name] ?? ""}
            onChange=${number(name, name === "seed" ? 0 : 1, high, true)} /><small>${help}</small></label>`)}
      </div>
      <footer><button type="button" class="plain"
          onClick=${() => conversations.setSettings(conversation, { ...DEFAULTS })}>Defaults</button>
        <button type="submit" class="primary">Done</button></footer>
    </form>
  </dialog>`;
}
