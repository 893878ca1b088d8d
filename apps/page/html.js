// preact, its hooks and htm under one name, and how components follow a store.
import { h, render } from "./vendor/preact.mjs";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-hooks.mjs";
import htm from "./vendor/htm.mjs";

export const html = htm.bind(h);
export { render, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** Something that components follow: it says when it has changed. */
export class Store {
  #followers = new Set();

  follow(follower) {
    this.#followers.add(follower);
    return () => this.#followers.delete(follower);
  }

  changed() {
    for (const follower of this.#followers) follower();
  }
}

/** Draw the component again whenever one of the stores changes. */
export function useStores(...stores) {
  const [, set] = useState(0);
  useEffect(() => {
    const again = () => set((n) => n + 1);
    const leave = stores.map((store) => store.follow(again));
    return () => leave.forEach((stop) => stop());
  }, stores);
}
