// The page: conversations, chat and dashboard side by side, or one at a time where it is narrow.
import { takeKey, useKey } from "./api.js";
import { Asking } from "./asking.js";
import { Chat } from "./chat.js";
import { Chooser, ChoosingStrip } from "./chooser.js";
import { Composer } from "./composer.js";
import { Conversations } from "./conversations.js";
import { Dashboard } from "./dashboard.js";
import { mib, rate } from "./format.js";
import { html, render, useEffect, useRef, useState, useStores } from "./html.js";
import { Icon, IconButton } from "./icons.js";
import { Instrument } from "./instrument.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";

function Page({ conversations, asking, instrument }) {
  const [drawer, setDrawer] = useState(""); // "conversations" or "dashboard", where they are not beside the chat
  const [settings, setSettings] = useState(false);
  const [choosing, setChoosing] = useState(false);
  const field = useRef(null);
  const begin = () => {
    conversations.begin();
    setDrawer("");
    field.current?.focus();
  };
  useEffect(() => {
    const key = (event) => {
      if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
        event.preventDefault();
        begin();
      } else if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) {
        if (drawer) setDrawer("");
        else asking.stop();
      }
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [drawer]);
  const shared = { conversations, asking, instrument };
  return html`<div class="page" data-drawer=${drawer}>
    <${Header} instrument=${instrument} drawer=${drawer} setDrawer=${setDrawer}
      openSettings=${() => setSettings(true)} openChooser=${() => setChoosing(true)} />
    <${Sidebar} ...${shared} begin=${begin} close=${() => setDrawer("")} />
    <div class="middle"><${ChoosingStrip} instrument=${instrument} openChooser=${() => setChoosing(true)} />
      <${Chat} ...${shared} /><${Composer} ...${shared} field=${field} /></div>
    <${Dashboard} ...${shared} />
    <div class="shade" onClick=${() => setDrawer("")}></div>
    ${settings && html`<${Settings} conversations=${conversations} close=${() => setSettings(false)} />`}
    ${choosing && html`<${Chooser} instrument=${instrument} close=${() => setChoosing(false)} />`}
    <${KeyDialog} instrument=${instrument} />
  </div>`;
}

function Header({ instrument, drawer, setDrawer, openSettings, openChooser }) {
  useStores(instrument);
  const { status } = instrument;
  const toggle = (name) => () => setDrawer(drawer === name ? "" : name);
  const told = instrument.chooser?.choosing; // above the conversation
  const state = instrument.trouble ? "away" : told ? "ready" : status?.state ?? "loading";
  return html`<header class="top">
    <${IconButton} name="menu" className="to-conversations" label="Conversations" onClick=${toggle("conversations")}
      aria-expanded=${drawer === "conversations"} />
    <div class="brand"><span class="word">edgert</span>
      ${instrument.chooser
        ? html`<button type="button" class="model to-chooser" onClick=${openChooser} aria-haspopup="dialog"
            aria-label=${`Model: ${instrument.model}. Choose another`} title="Choose a model">
            <span>${instrument.model}</span><${Icon} name="choose" /></button>`
        : html`<span class="model" title=${instrument.model}>${instrument.model}</span>`}
      <span class=${`state ${state}`} role="status">${state === "ready" ? "" : state === "away" ? "no server" : state}
      </span></div>
    <button type="button" class="to-dashboard" onClick=${toggle("dashboard")} aria-expanded=${drawer === "dashboard"}
        aria-label="Dashboard">
      <span>${status?.budget ? mib(status.budget) : "–"} MiB</span>
      <span class="live">${rate(instrument.now.speed)} tok/s</span></button>
    <${IconButton} name="settings" label="Settings" onClick=${openSettings} />
    <${IconButton} name="theme" label="Dark or light" onClick=${() => toggleTheme()} />
  </header>`;
}

/** Asks for the server's key where it wants one that the page does not have. */
function KeyDialog({ instrument }) {
  useStores(instrument);
  const dialog = useRef(null), field = useRef(null);
  useEffect(() => {
    if (instrument.needsKey) dialog.current.showModal();
    else dialog.current.close();
  }, [instrument.needsKey]);
  const give = (event) => {
    event.preventDefault();
    useKey(field.current.value.trim());
  };
  return html`<dialog ref=${dialog} class="settings key" aria-labelledby="key-title"><form class="settings-body"
      onSubmit=${give}>
    <h2 id="key-title">This server wants its key</h2>
    <label class="wide">Key<input ref=${field} type="password" autocomplete="current-password" required /></label>
    <footer><button type="submit" class="primary">Go on</button></footer>
  </form></dialog>`;
}

takeKey();
const conversations = new Conversations(), instrument = new Instrument();
render(html`<${Page} conversations=${conversations} instrument=${instrument}
  asking=${new Asking(conversations, instrument)} />`, document.body);
