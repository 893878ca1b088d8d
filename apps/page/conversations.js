// Conversations, kept in the browser: each under a key of its own, so that two windows do not overwrite one another.
import { Store } from "./html.js";

const PREFIX = "edgert.conversation.", LATEST = "edgert.latest", SETTINGS = "edgert.settings";
const SAVE_EVERY_MS = 500;

export const DEFAULTS = {
  system: "", temperature: 0.8, top_p: 0.95, top_k: 40, min_p: 0.05, repetition_penalty: 1, seed: null,
  max_tokens: null,
};

const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

export const newMessage = (role, content) => ({ id: newId(), role, content });

export class Conversations extends Store {
  constructor() {
    super();
    this.refused = "";
    this.waiting = new Map();
    this.read();
    this.current = this.list.find((c) => c.id === localStorage.getItem(LATEST)) ?? this.list[0] ?? this.fresh();
    addEventListener("storage", ({ key }) => key?.startsWith(PREFIX) && this.elsewhere(key.slice(PREFIX.length)));
    addEventListener("pagehide", () => this.flush());
  }

  read() {
    this.list = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).flatMap((key) => {
      try {
        const kept = JSON.parse(localStorage.getItem(key));
        if (!Array.isArray(kept?.messages)) return [];
        for (const message of kept.messages) delete message.check; // it was being compared when the page was left
        return [{ ...kept, settings: { ...DEFAULTS, ...kept.settings } }];
      } catch {
        return [];
      }
    });
    this.sort();
  }

  sort() {
    this.list.sort((a, b) => b.changed - a.changed);
  }

  /** Another window has changed a conversation. The one that is open here stays as it is here. */
  elsewhere(id) {
    if (id === this.current.id) return;
    const here = this.list.filter((c) => this.waiting.has(c.id) || c.id === this.current.id);
    this.read();
    this.list = [...here, ...this.list.filter((c) => !here.some((mine) => mine.id === c.id))];
    this.sort();
    this.changed();
  }

  /** A new conversation, with the settings used last. It is kept once something was asked. */
  fresh() {
    let settings = {};
    try {
      settings = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    } catch { /* the defaults */ }
    return { id: newId(), changed: Date.now(), messages: [], settings: { ...DEFAULTS, ...settings } };
  }

  begin() {
    if (this.current.messages.length) this.current = this.fresh();
    this.changed();
    return this.current;
  }

  open(conversation) {
    this.current = conversation;
    localStorage.setItem(LATEST, conversation.id);
    this.changed();
  }

  remove(conversation) {
    this.list = this.list.filter((c) => c !== conversation);
    clearTimeout(this.waiting.get(conversation.id));
    this.waiting.delete(conversation.id);
    localStorage.removeItem(PREFIX + conversation.id);
    if (this.current === conversation) this.current = this.list[0] ?? this.fresh();
    this.changed();
  }

  setSettings(conversation, settings) {
    conversation.settings = settings;
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
    if (conversation.messages.length) this.keep(conversation);
    this.changed();
  }

  /** Say that a conversation has changed: it is drawn at once, and written a little later. */
  keep(conversation) {
    if (!this.list.includes(conversation)) this.list.unshift(conversation);
    if (!this.waiting.has(conversation.id)) {
      this.waiting.set(conversation.id, setTimeout(() => this.write(conversation), SAVE_EVERY_MS));
    }
    this.changed();
  }

  touch(conversation) {
    conversation.changed = Date.now();
    this.keep(conversation);
    this.sort();
  }

  write(conversation) {
    clearTimeout(this.waiting.get(conversation.id));
    this.waiting.delete(conversation.id);
    try {
      localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      localStorage.setItem(LATEST, this.current.id);
      this.refused = "";
    } catch {
      this.refused = "The browser's storage is full: delete old conversations, or this one will be lost on leaving.";
      this.changed();
    }
  }

  flush() {
    for (const conversation of this.list.filter((c) => this.waiting.has(c.id))) this.write(conversation);
  }
}

export function title(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return first?.content.trim().split("\n")[0].slice(0, 80) || "New conversation";
}
