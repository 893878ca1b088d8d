// The conversations that are kept.
import { title } from "./conversations.js";
import { when } from "./format.js";
import { html, useState, useStores } from "./html.js";
import { Icon, IconButton } from "./icons.js";

export function Sidebar({ conversations, asking, begin, close }) {
  useStores(conversations, asking);
  const [leaving, setLeaving] = useState(null);
  const open = (conversation) => {
    conversations.open(conversation);
    close();
  };
  const remove = (conversation) => {
    if (asking.running?.conversation === conversation) asking.stop();
    conversations.remove(conversation);
    setLeaving(null);
  };
  return html`<nav class="sidebar" aria-label="Conversations">
    <button type="button" class="begin" onClick=${begin}><${Icon} name="plus" />New conversation</button>
    <ul>
      ${conversations.list.map((conversation) => html`<li key=${conversation.id}
          class=${conversation === conversations.current ? "current" : ""}>
        ${leaving === conversation.id
          ? html`<div class="leaving" role="group" aria-label="Delete this conversation?">
              <button type="button" class="danger" onClick=${() => remove(conversation)}>Delete</button>
              <button type="button" class="plain" onClick=${() => setLeaving(null)}>Keep</button></div>`
          : html`<button type="button" class="entry" onClick=${() => open(conversation)}
                aria-current=${conversation === conversations.current ? "true" : undefined}>
              <span class="entry-title">${title(conversation)}</span>
              <time>${when(conversation.changed)}</time></button>
            <${IconButton} name="trash" label=${`Delete “${title(conversation)}”`}
              onClick=${() => setLeaving(conversation.id)} />`}
      </li>`)}
    </ul>
    ${!conversations.list.length && html`<p class="none">What you ask is kept in this browser.</p>`}
  </nav>`;
}
