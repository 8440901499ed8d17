// Markdown as elements, never as HTML: the tokens of markdown-it become the elements and attributes named here.

import { all, make, t } from "./dom.js";
import { footnote, MarkdownIt, tex } from "./markdown-it.js";

const LONGEST = 200_000; // characters of code that are coloured
const TAGS = new Set(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "table", "thead",
  "tbody", "tr", "th", "td", "strong", "em", "s"]);
const TASK = /^\[([ xX])\] /;

const parser = new MarkdownIt({ html: false, linkify: true, breaks: true, maxNesting: 40 })
  .use(footnote).use(tex, { delimiters: "all", render: (content) => content });
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
parser.validateLink = (address) => Boolean(harmless(address)) || !/^[a-z][a-z0-9+.-]*:/i.test(address);

/** Shows `text` in `container`, as it is if `plain`. Blocks that did not change since the last call are kept. */
export function show(container, text, plain) {
  if (plain) return container.replaceChildren(make("p", { class: "written", dir: "auto" }, text));
  const shown = [...container.children];
  const lines = text.split(/\r\n|[\n\r]/);
  const blocks = split(parser.parse(text, {}));
  blocks.forEach((tokens, place) => {
    const source = JSON.stringify([tokens[0].type, tokens[0].map ? lines.slice(...tokens[0].map) : tokens, linked(tokens)]);
    if (shown[place]?.source === source) return;
    const made = build(tokens);
    made.source = source;
    if (shown[place]) shown[place].replaceWith(made);
    else container.append(made);
  });
  for (const extra of shown.slice(blocks.length)) extra.remove();
}

/** The tokens of each block at the top. */
function split(tokens) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push([]);
    blocks.at(-1).push(token);
    depth += token.nesting;
  }
  return blocks;
}

/** Where the links of a block lead, which a definition elsewhere may say. */
const linked = (tokens) => tokens.flatMap((token) => (token.children ?? []).flatMap(({ attrs, meta }) => [attrs, meta])).filter(Boolean);

/** The element of a block, which runs in the direction of its script. */
function build(tokens) {
  const root = make("div");
  fill(root, tokens);
  const block = root.childElementCount === 1 ? root.firstElementChild : root;
  if (!block.matches(".code")) block.dir = "auto";
  return block;
}

function fill(root, tokens) {
  const path = [root];
  for (const token of tokens) {
    const parent = path.at(-1);
    if (token.type === "inline") inline(parent, token.children, path.length);
    else if (token.hidden) continue; // the paragraphs of a tight list
    else if (token.nesting > 0) path.push(open(parent, token));
    else if (token.nesting < 0) path.pop();
    else leaf(parent, token);
  }
}

/** Appends the element that `token` opens; returns where its content belongs. */
function open(parent, token) {
  if (token.type === "table_open") {
    const table = make("table");
    parent.append(make("div", { class: "table-wrap", tabindex: "0" }, table));
    return table;
  }
  const made = make(tagOf(token), attributes(token));
  parent.append(made);
  return made;
}

function tagOf({ type, tag }) {
  if (type === "footnote_block_open") return "ol";
  if (type === "footnote_open") return "li";
  if (type === "link_open") return "a";
  return TAGS.has(tag) ? tag : "span";
}

function attributes(token) {
  if (token.type === "footnote_block_open") return { class: "footnotes" };
  const side = /text-align:(center|right)/.exec(token.attrGet("style") ?? "")?.[1];
  if (side) return { class: side === "center" ? "mid" : "end" };
  if (token.tag === "ol") return { start: token.attrGet("start") };
  if (token.type !== "link_open") return {};
  const target = harmless(token.attrGet("href"));
  return target ? { href: target, rel: "noopener noreferrer nofollow", target: "_blank" } : {};
}

function leaf(parent, token) {
  if (token.type === "fence" || token.type === "code_block") parent.append(code(token.content.replace(/\n$/, ""), token.info));
  else if (token.type.startsWith("math")) parent.append(formula(token.content, true));
  else if (TAGS.has(token.tag)) parent.append(make(token.tag));
  else if (token.content) parent.append(token.content);
}

function inline(root, tokens, depth) {
  const path = [root];
  tokens.forEach((token, place) => {
    const parent = path.at(-1);
    if (token.type === "text") parent.append(place === 0 && depth > 1 ? task(root, token.content) : token.content);
    else if (token.type === "softbreak" || token.type === "hardbreak") parent.append(make("br"));
    else if (token.type === "code_inline") parent.append(make("code", {}, token.content));
    else if (token.type.startsWith("math")) parent.append(formula(token.content, token.type.endsWith("block")));
    else if (token.type === "footnote_ref") parent.append(make("sup", {}, String(token.meta.id + 1)));
    else if (token.type === "image") image(parent, token);
    else if (token.nesting > 0) path.push(open(parent, token));
    else if (token.nesting < 0) path.pop();
    else if (token.content && token.type !== "footnote_anchor") parent.append(token.content);
  });
}

/** The text of a list item, its box drawn instead of the bullet. */
function task(root, text) {
  const found = TASK.exec(text);
  const item = root.closest("li");
  if (!found || !item || item.textContent) return text;
  item.className = "task";
  const done = found[1] !== " ";
  root.append(make("span", { class: done ? "box-mark done" : "box-mark", role: "img", "aria-label": t(done ? "task_done" : "task_open") }));
  return text.slice(found[0].length);
}

/** A link to a picture: pictures of other hosts are not loaded. */
function image(parent, token) {
  const target = harmless(token.attrGet("src"));
  const words = token.content || token.attrGet("src") || "";
  const inLink = parent.closest("a");
  parent.append(target && !inLink ? make("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" }, words) : words);
}

/** Where a link may lead: to the web or to mail. */
function harmless(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// ── code and formulas: their libraries are loaded when there is the first one ──────────────────

const loaded = new Map();

/** Calls `use` with a module: at once if it is there, so that nothing flickers, else when it has come. */
function later(name, use) {
  if (!loaded.has(name)) loaded.set(name, import(name).then((module) => loaded.set(name, module).get(name)));
  const found = loaded.get(name);
  if (found instanceof Promise) found.then(use);
  else use(found);
}

function code(text, info) {
  const language = info.trim().split(/\s/, 1)[0].slice(0, 30);
  const button = make("button", { type: "button", class: "plain", "data-copy": true }, t("copy"));
  const head = make("div", { class: "code-head" }, make("span", {}, language || "code"), button);
  const body = make("code", {}, text);
  if (language && text.length < LONGEST) later("./highlight.js", ({ lowlight }) => colour(body, lowlight, language.toLowerCase(), text));
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, body));
}

function colour(body, lowlight, language, text) {
  if (lowlight.registered(language)) body.replaceChildren(...coloured(lowlight.highlight(language, text).children));
}

const coloured = (nodes) => nodes.map((node) => (node.type === "text" ? node.value
  : make("span", { class: (node.properties.className ?? []).join(" ") }, ...coloured(node.children))));

function formula(source, display) {
  const made = make(display ? "div" : "span", { class: "formula" }, source.trim());
  later("./math.js", ({ temml }) => typeset(made, temml, source, display));
  return made;
}

function typeset(element, temml, source, display) {
  temml.render(source, element, { displayMode: display, throwOnError: false, trust: false, maxExpand: 500, maxSize: [20, 20] });
  // A formula is words and lines: nothing in it leads elsewhere or runs.
  for (const part of all("[href], [src]", element)) for (const name of ["href", "src"]) part.removeAttribute(name);
}
