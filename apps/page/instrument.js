// What the server says of itself, four times a second, and the last half minute of it.
import { ApiError, setBudget, status } from "./api.js";
import { Store } from "./html.js";

const EVERY_MS = 250, KEPT = 128;
const SPAN = 6;
/** Samples that a rate is taken over: a second and a half, so that passes that bring several tokens do not jump. */

export class Instrument extends Store {
  constructor() {
    super();
    this.status = null;
    this.samples = [];
    this.trouble = "";
    this.needsKey = false;
    this.refused = "";
    this.ready = [];
    this.reloading = false;
    this.accepted = 0;
    this.poll();
  }

  get budget() {
    return this.status?.budget ?? null;
  }

  get model() {
    return this.status?.model ?? "";
  }

  /** What of choosing a model is under way; null where this server lets nobody choose. */
  get chooser() {
    return this.status?.chooser ?? null;
  }

  get loading() {
    return !this.status || this.reloading || this.status.state === "loading";
  }

  async poll() {
    for (;;) {
      const begun = performance.now();
      try {
        this.take(await status(), begun);
        this.trouble = "";
        this.needsKey = false;
      } catch (error) {
        this.heard(error);
        this.trouble = error instanceof ApiError ? error.message : "What the server says cannot be read.";
        this.changed();
      }
      await new Promise((go) => setTimeout(go, document.hidden ? 4 * EVERY_MS : EVERY_MS));
    }
  }

  /** An error that came with an answer or a poll: a key may be missing. */
  heard(error) {
    if (error.status === 401) this.needsKey = true;
  }

  take(said, begun) {
    const now = performance.now() / 1000, last = this.samples.at(-1);
    const kept = { ...this.status, ...said };
    const counts = { bytes: said.streaming?.bytes ?? 0, tokens: said.tokens ?? 0 };
    const restarted = last && (counts.bytes < last.bytes || counts.tokens < last.tokens);
    const sample = { at: now, ...counts, used: said.used, ...(restarted ? { begins: true } : {}) };
    this.samples.push(sample);
    if (this.samples.length > KEPT) this.samples.shift();
    sample.reading = this.over("bytes");
    sample.speed = this.over("tokens");
    this.status = kept;
    if (begun > this.accepted) this.wake();
    this.changed();
  }

  /** How much of something came a second lately. */
  over(what) {
    const recent = this.samples.slice(-SPAN - 1);
    const begin = recent.findLastIndex((sample) => sample.begins);
    const [first, last] = [recent[Math.max(begin, 0)], recent.at(-1)];
    return last.at > first.at ? (last[what] - first[what]) / (last.at - first.at) : 0;
  }

  get now() {
    return this.samples.at(-1) ?? { reading: 0, speed: 0, used: 0 };
  }

  /** Load the model again with another budget. Resolves once it is ready; false where that was refused or failed. */
  async reload(bytes) {
    this.refused = "";
    this.reloading = true;
    this.accepted = Infinity; // what is said until the server has agreed is of the time before
    this.changed();
    try {
      await setBudget(bytes);
    } catch (error) {
      this.reloading = false;
      this.accepted = 0;
      this.heard(error);
      this.refused = error instanceof ApiError ? error.message : "The budget could not be set.";
      this.changed();
      return false;
    }
    this.accepted = performance.now();
    return new Promise((tell) => this.ready.push(tell));
  }

  wake() {
    if (this.status.state === "loading") return;
    const ready = this.status.state === "ready";
    this.reloading = false;
    for (const tell of this.ready.splice(0)) tell(ready);
  }
}
