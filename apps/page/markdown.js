// A model's answer as elements. It is untrusted: whatever it contains, what comes out is text, lists, tables, code and
// links that a person has to click. The page's content security policy is the second wall.
import { Marked } from "./vendor/marked.mjs";

const TAGS = ["a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "kbd",
  "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"];
const ATTRIBUTES = ["align", "class", "href", "start", "title"];
const LANGUAGE = /^language-[\w+#.-]{1,30}$/;
const ADDRESS = /^(?:https?|mailto):/i;

const PLAIN_TAG = /^<\/?(?:b|br|em|i|kbd|s|strong|sub|sup)\s*\/?>$/i;

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: {
    image: ({ text, href }) => `[${escaped(text || "image")}: ${escaped(href)}]`, // nothing is fetched for an answer
    html: ({ text }) => (PLAIN_TAG.test(text.trim()) ? text : escaped(text)), // other tags are shown as what they are
  },
});

const purifier = DOMPurify(window);
purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !(node.localName === "code" && LANGUAGE.test(node.className))) {
    node.removeAttribute("class");
  }
  if (node.localName !== "a") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

function elements(markup) {
  const fragment = purifier.sanitize(markup, {
    ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOWED_URI_REGEXP: ADDRESS, ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true,
  });
  fragment.querySelectorAll("pre > code").forEach(frame);
  fragment.querySelectorAll("table").forEach((table) => {
    const scroller = document.createElement("div");
    scroller.className = "table";
    table.replaceWith(scroller);
    scroller.append(table);
  });
  return fragment;
}

/** Put the language and a button that copies around a block of code. */
function frame(code) {
  const figure = document.createElement("figure"), head = document.createElement("figcaption");
  const name = document.createElement("span"), button = document.createElement("button");
  name.textContent = code.className.replace("language-", "") || "text";
  button.type = "button";
  button.className = "copy-code";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    button.textContent = await copy(code.textContent) ? "Copied" : "Not allowed";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  head.append(name, button);
  const block = code.parentElement;
  block.tabIndex = 0; // it scrolls: also without a mouse
  block.replaceWith(figure);
  figure.className = "code";
  figure.append(head, block);
}

/** Put text on the clipboard; also where the page's address is not a secure one. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "offscreen";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

/**
 * Make `parent` show a text. Blocks that have not changed stay the elements that they were: while an answer grows, only
 * its end is drawn again, and what is selected stays selected.
 */
export function show(parent, text) {
  const blocks = marked.lexer(text);
  const links = JSON.stringify(blocks.links);
  const wanted = blocks.filter((block) => block.type !== "space");
  wanted.forEach((block, place) => {
    let node = parent.children[place];
    if (node && node.raw === block.raw && node.links === links) return;
    const made = document.createElement("div");
    made.className = "block";
    made.raw = block.raw;
    made.links = links;
    const one = [block];
    one.links = blocks.links;
    made.append(elements(marked.parser(one)));
    if (node) node.replaceWith(made);
    else parent.append(made);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}

/** How many characters of the shown text the first part of its source makes. */
export function shownLength(text) {
  const apart = document.createElement("div");
  show(apart, text);
  return [...apart.querySelectorAll("figcaption")].reduce((sum, head) => sum - head.textContent.length,
    apart.textContent.length);
}

/** The range of what `parent` shows after so many characters, code blocks' headings not counted. */
export function rangeAfter(parent, count) {
  const walker = document.createTreeWalker(parent, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  range.selectNodeContents(parent);
  let left = count;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("figcaption")) continue;
    if (left <= node.length) {
      range.setStart(node, left);
      return range;
    }
    left -= node.length;
  }
  range.collapse();
  return range;
}
