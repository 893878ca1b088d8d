// The conversation: questions and answers, and what can be done with each.
import { NoModelYet } from "./chooser.js";
import { rate, seconds, percent, wholeMib } from "./format.js";
import { html, useEffect, useLayoutEffect, useRef, useState, useStores } from "./html.js";
import { IconButton } from "./icons.js";
import { copy, rangeAfter, show, shownLength } from "./markdown.js";

const NEAR_END = 80;
/** Pixels from the end within which the view follows an answer that grows. */

export function Chat({ conversations, asking, instrument }) {
  useStores(conversations, asking);
  const scroller = useRef(null), follows = useRef(true);
  const conversation = conversations.current;
  const running = asking.running?.conversation === conversation ? asking.running : null;
  useLayoutEffect(() => {
    follows.current = true;
  }, [conversation.id, conversation.messages.length]);
  useLayoutEffect(() => {
    const view = scroller.current;
    if (follows.current && running?.mode !== "again") view.scrollTop = view.scrollHeight;
  });
  const scrolled = () => {
    const view = scroller.current;
    follows.current = view.scrollHeight - view.scrollTop - view.clientHeight < NEAR_END;
  };
  return html`<main class="chat" ref=${scroller} onScroll=${scrolled} aria-label="Conversation" tabindex="-1">
    <div class="messages" role="log" aria-live="off">
      ${conversation.messages.map((message) => message.role === "user"
        ? html`<${Question} key=${message.id} message=${message} conversation=${conversation} asking=${asking} />`
        : html`<${Answer} key=${message.id} message=${message} conversation=${conversation} asking=${asking}
            running=${running?.message === message ? running : null} />`)}
      ${!conversation.messages.length && html`<${Empty} instrument=${instrument} asking=${asking}
        conversation=${conversation} />`}
    </div>
    <div class="offscreen" role="status">${running?.mode === "answer" ? "Answering" : ""}</div>
  </main>`;
}

const STARTS = ["Explain how a tide comes about, in five sentences.",
  "Write a Python function that merges two sorted lists.",
  "Name three rivers, and the seas that they reach."];

function Empty({ asking, conversation, instrument }) {
  useStores(instrument);
  if (instrument.chooser && !instrument.budget) return html`<${NoModelYet} instrument=${instrument} />`;
  return html`<section class="empty">
    <h1>${instrument.model || "edgert"}</h1>
    <p>The memory budget decides the speed, never the answer. Ask something, then move the budget:
      the same question is asked again.</p>
    <ul>${STARTS.map((text) => html`<li><button type="button" onClick=${() => asking.ask(conversation, text)}
      disabled=${instrument.loading}>${text}</button></li>`)}</ul>
  </section>`;
}

function Question({ message, conversation, asking }) {
  const [text, setText] = useState(null);
  const field = useRef(null);
  useEffect(() => {
    if (text === null) return;
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight}px`;
  }, [text]);
  useEffect(() => field.current?.focus(), [text === null]);
  const send = () => {
    setText(null);
    if (text.trim()) asking.ask(conversation, text.trim(), conversation.messages.indexOf(message));
  };
  const key = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      setText(null);
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  if (text !== null) {
    return html`<article class="message question editing" aria-label="Your question">
      <textarea ref=${field} value=${text} rows="1" aria-label="Edit the question" onKeyDown=${key}
        onInput=${(event) => setText(event.target.value)}></textarea>
      <div class="editing-actions">
        <button type="button" class="plain" onClick=${() => setText(null)}>Cancel</button>
        <button type="button" class="primary" onClick=${send} disabled=${!text.trim()}>Ask</button>
      </div>
    </article>`;
  }
  return html`<article class="message question" aria-label="Your question">
    <div class="question-text">${message.content}</div>
    <div class="actions">
      <${IconButton} name="edit" label="Edit and ask again" onClick=${() => setText(message.content)} />
      <${CopyButton} text=${message.content} label="Copy the question" />
    </div>
  </article>`;
}

function CopyButton({ text, label }) {
  const [done, setDone] = useState(false);
  const press = async () => {
    setDone(await copy(text));
    setTimeout(() => setDone(false), 1500);
  };
  return html`<${IconButton} name=${done ? "check" : "copy"} label=${label} onClick=${press} />`;
}

function Answer({ message, conversation, asking, running }) {
  const body = useRef(null);
  useLayoutEffect(() => show(body.current, message.content), [message.content]);
  useLayoutEffect(() => dimRest(body.current, message), [message.check?.text, message.content]);
  const waiting = running && !message.content && !message.thinking;
  return html`<article class=${`message answer ${message.check ? "compared" : ""}`} aria-label="Answer"
      aria-busy=${Boolean(running)}>
    ${waiting && html`<div class="waiting" role="status"><span></span>reading the question</div>`}
    ${message.thinking && html`<details class="thought">
      <summary>${running && !message.content ? "Thinking" : "Thought"}</summary>
      <div>${message.thinking}</div>
    </details>`}
    <div class=${`markdown ${running && !message.check ? "growing" : ""}`} ref=${body}></div>
    ${message.error && html`<p class="error" role="alert">${message.error}</p>`}
    <${Facts} message=${message} running=${running} model=${asking.instrument.model} />
    ${!running && html`<div class="actions">
      <${CopyButton} text=${message.content} label="Copy the answer" />
      <${IconButton} name="retry" label="Answer again, with another seed"
        onClick=${() => asking.retry(conversation, message)} />
    </div>`}
  </article>`;
}

/** While an answer is compared with another, what has not come yet is faint. */
function dimRest(body, message) {
  if (!globalThis.Highlight) return;
  if (!message.check) {
    if (body.dims) CSS.highlights.delete("rest");
    body.dims = false;
    return;
  }
  body.dims = true;
  CSS.highlights.set("rest", new Highlight(rangeAfter(body, shownLength(message.check.text))));
}

function Facts({ message, running, model }) {
  if (message.check) {
    const share = message.check.text.length / Math.max(message.content.length, 1);
    return html`<footer class="facts" role="status">asked again at ${wholeMib(message.check.budget)} MiB ·
      the same so far, ${percent(Math.min(share, 1))}</footer>`;
  }
  if (running) return null;
  const facts = [];
  if (message.tokens) facts.push(`${message.tokens} tokens`);
  if (message.speed) facts.push(`${rate(message.speed)} tokens/s`);
  if (message.first) facts.push(`first after ${seconds(message.first)}`);
  if (message.budget) facts.push(`${wholeMib(message.budget)} MiB`);
  if (message.model && message.model !== model) facts.push(message.model);
  if (message.stopped) facts.push("stopped");
  else if (message.finish === "length") facts.push("cut at the limit");
  else if (!message.finish && !message.error) facts.push("interrupted");
  const latest = message.runs?.length > 1 ? message.runs.at(-1) : null;
  return html`<footer class="facts">${facts.join(" · ")}
    ${latest && html`<strong class=${latest.same ? "same" : "differs"} role="status">${latest.same
      ? html`same answer at ${wholeMib(latest.budget)} MiB`
      : html`differs at ${wholeMib(latest.budget)} MiB, from character ${latest.differs + 1} on`}</strong>`}
    ${message.note && html`<span class="error">${message.note}</span>`}
  </footer>`;
}
