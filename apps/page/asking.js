// Asking for answers: one at a time; and asking the last question again, to compare.
import { ApiError, complete } from "./api.js";
import { newMessage } from "./conversations.js";
import { Store } from "./html.js";

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];
const SEEDS = 2 ** 32;

/** What of the settings goes with a question. Without a seed of the user's it gets one: it can be asked again. */
function asked(settings) {
  const values = Object.fromEntries(SAMPLING.map((name) => [name, settings[name]]));
  if (settings.max_tokens) values.max_completion_tokens = settings.max_tokens;
  return { ...values, seed: settings.seed ?? Math.floor(Math.random() * SEEDS) };
}

export class Asking extends Store {
  constructor(conversations, instrument) {
    super();
    this.conversations = conversations;
    this.instrument = instrument;
    this.running = null;
  }

  /** Ask in a conversation. Where it is `from` a message on, what followed is dropped. */
  async ask(conversation, text, from = conversation.messages.length) {
    this.stop();
    conversation.messages.splice(from, Infinity, newMessage("user", text));
    await this.answer(conversation);
  }

  /** Answer the conversation's last question again, with a new seed. */
  async retry(conversation, message) {
    this.stop();
    conversation.messages.splice(conversation.messages.indexOf(message), Infinity);
    await this.answer(conversation);
  }

  async answer(conversation) {
    const message = { ...newMessage("assistant", ""), asked: asked(conversation.settings),
      system: conversation.settings.system, budget: this.instrument.budget, model: this.instrument.model };
    const before = [...conversation.messages];
    conversation.messages.push(message);
    this.conversations.touch(conversation);
    await this.run(conversation, message, before, "answer", (text, thought = "") => {
      message.content += text;
      if (thought) message.thinking = (message.thinking ?? "") + thought;
      this.conversations.keep(conversation);
      return true;
    }, (outcome) => {
      Object.assign(message, outcome);
      this.conversations.touch(conversation);
    });
  }

  /** The last answer of a conversation, if it can be compared with another of the same question: another model's is
   * another answer. */
  last(conversation) {
    const message = conversation.messages.at(-1);
    const comparable = message?.role === "assistant" && message.content && !message.error
      && (message.model ?? this.instrument.model) === this.instrument.model;
    return comparable ? message : null;
  }

  /** Ask the last question again, and compare: the answer stays, and beside it stands how fast it came this time. */
  async again(conversation) {
    this.stop();
    const message = this.last(conversation);
    if (!message) return;
    message.runs ??= [{ budget: message.budget, speed: message.speed, tokens: message.tokens, same: true }];
    const check = message.check = { budget: this.instrument.budget, text: "" };
    const before = conversation.messages.slice(0, -1);
    await this.run(conversation, message, before, "again", (text) => {
      check.text += text;
      this.conversations.keep(conversation);
      const begun = message.stopped && check.text.length >= message.content.length;
      return !begun && message.content.startsWith(check.text.slice(0, message.content.length));
    }, (outcome) => {
      delete message.check;
      if (outcome.error || (outcome.stopped && !outcome.enough)) {
        if (outcome.error) message.note = outcome.error;
      } else {
        const same = message.stopped ? check.text.startsWith(message.content)
          : check.text === message.content && outcome.finish === message.finish;
        delete message.note;
        message.runs.push({ budget: check.budget, speed: outcome.speed, tokens: outcome.tokens, same,
          differs: same ? undefined : differsAt(message.content, check.text) });
      }
      this.conversations.touch(conversation);
    });
  }

  /**
   * Have a question answered. take(text, thought): called with each piece; false ends the answer. end(outcome): called once,
   * with { finish, tokens, speed, first, stopped, enough, error }.
   */
  async run(conversation, message, before, mode, take, end) {
    const controller = new AbortController();
    const running = this.running = { conversation, message, mode, controller };
    this.changed();
    const system = message.system ? [{ role: "system", content: message.system }] : [];
    const messages = [...system, ...before.map(({ role, content, thinking }) => (
      thinking ? { role, content, reasoning_content: thinking } : { role, content }))];
    const outcome = { finish: null }, begun = performance.now();
    let first = null, latest = null, pieces = 0;
    try {
      for await (const part of complete({ model: this.instrument.model, messages, ...message.asked },
        controller.signal)) {
        if (part.text || part.thought) {
          latest = performance.now();
          first ??= latest;
          pieces += 1;
          if (!take(part.text ?? "", part.thought)) {
            outcome.enough = true;
            controller.abort();
          }
        }
        if (part.finish) outcome.finish = part.finish;
        if (part.usage) outcome.tokens = part.usage.completion_tokens;
      }
    } catch (error) {
      if (error.name === "AbortError") outcome.stopped = true;
      else if (error instanceof ApiError) outcome.error = error.message;
      else outcome.error = "The server's answer could not be read.";
      this.instrument.heard(error);
    }
    outcome.tokens ??= pieces;
    outcome.first = first === null ? null : (first - begun) / 1000;
    outcome.speed = latest > first && outcome.tokens > 1 ? (outcome.tokens - 1) / ((latest - first) / 1000) : null;
    if (this.running === running) this.running = null;
    end(outcome);
    this.changed();
  }

  stop() {
    this.running?.controller.abort();
  }
}

function differsAt(one, other) {
  let place = 0;
  while (place < one.length && one[place] === other[place]) place += 1;
  return place;
}
