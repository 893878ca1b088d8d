// Where questions are written.
import { html, useEffect, useRef, useState, useStores } from "./html.js";
import { IconButton } from "./icons.js";

export function Composer({ conversations, asking, instrument, field }) {
  useStores(conversations, asking, instrument);
  const [text, setText] = useState("");
  const drafts = useRef(new Map());
  const conversation = conversations.current;
  const running = asking.running;
  useEffect(() => {
    setText(drafts.current.get(conversation.id) ?? "");
    if (matchMedia("(hover: hover)").matches) field.current.focus();
  }, [conversation.id]);
  useEffect(() => {
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight}px`;
  }, [text]);
  const write = (value) => {
    drafts.current.set(conversation.id, value);
    setText(value);
  };
  const send = () => {
    if (!text.trim() || running || instrument.loading) return;
    asking.ask(conversation, text.trim());
    write("");
  };
  const key = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  const hint = instrument.trouble || (instrument.status?.state === "failed"
      ? (instrument.chooser ? "No model is loaded: choose one." : "The model could not be loaded.")
    : instrument.chooser?.choosing?.cancellable && instrument.loading ? "The model is on its way"
    : instrument.loading ? "Loading the model" : "");
  return html`<form class="composer" onSubmit=${(event) => { event.preventDefault(); send(); }}>
    ${conversations.refused && html`<p class="error" role="alert">${conversations.refused}</p>`}
    <div class="composer-box">
      <textarea ref=${field} value=${text} rows="1" placeholder="Ask something" aria-label="Your question"
        onInput=${(event) => write(event.target.value)} onKeyDown=${key} enterkeyhint="send"></textarea>
      ${running
        ? html`<${IconButton} name="stop" className="primary" label="Stop (Esc)" onClick=${() => asking.stop()} />`
        : html`<${IconButton} name="send" className="primary" label="Send (Enter)" onClick=${send}
            disabled=${!text.trim() || instrument.loading} />`}
    </div>
    <div class="composer-hint">
      <span class=${instrument.trouble ? "error" : ""} role="status">${hint}</span>
      <span class="keys"><kbd>Enter</kbd> sends <kbd>Shift Enter</kbd> new line <kbd>Esc</kbd> stops
        <kbd>Ctrl K</kbd> new</span>
    </div>
  </form>`;
}
