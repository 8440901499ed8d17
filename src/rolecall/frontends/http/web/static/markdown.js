// Markdown as elements, never as HTML: whatever an answer contains, only the elements named here are created.

import { make, t } from "./dom.js";

const LONGEST = 4000; // characters of a paragraph that are parsed for inline marks; longer ones are plain text
const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const QUOTE = /^ {0,3}> ?/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const BLANK = /^\s*$/;
const INLINE = new RegExp([
  "\\\\([!-/:-@[-`{-~])", // 1: escaped
  "(`+)(?!`)([^]*?[^`])\\2(?!`)", // 3: code
  "!?\\[((?:[^\\[\\]\\\\]|\\\\.)*)\\]\\(\\s*<?([^\\s<>()]*(?:\\([^\\s()]*\\)[^\\s<>()]*)*)>?(?:\\s+(?:\"[^\"]*\"|'[^']*'))?\\s*\\)", // 4, 5: link
  "<(https?:[^\\s<>]+|mailto:[^\\s<>]+)>", // 6: address in brackets
  "\\*\\*(?=\\S)([^]*?\\S)\\*\\*(?!\\*)", // 7
  "(?<![\\p{L}\\p{N}_])__(?=\\S)([^]*?\\S)__(?![\\p{L}\\p{N}_])", // 8: strong
  "~~(?=\\S)([^]*?\\S)~~", // 9: struck
  "\\*(?=[^\\s*])([^]*?[^\\s*])\\*(?!\\*)", // 10
  "(?<![\\p{L}\\p{N}_])_(?=[^\\s_])([^]*?[^\\s_])_(?![\\p{L}\\p{N}_])", // 11: emphasis
  "(https?:\\/\\/[^\\s<>\"'`]+)", // 12: bare address
].join("|"), "gu");

/** Shows `text` in `container`. Blocks that did not change since the last call are kept. */
export function show(container, text) {
  const blocks = split(text.replaceAll("\r\n", "\n").split("\n"));
  const shown = [...container.children];
  blocks.forEach((block, place) => {
    const source = block.join("\n");
    if (shown[place]?.source === source) return;
    const made = build(block, 0) ?? make("p");
    made.source = source;
    if (shown[place]) shown[place].replaceWith(made);
    else container.append(made);
  });
  for (const extra of shown.slice(blocks.length)) extra.remove();
}

/** Splits `lines` into blocks: lists of lines that belong together. */
function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const end = endOf(lines, at);
    blocks.push(lines.slice(at, end));
    at = end;
  }
  return blocks;
}

function endOf(lines, start) {
  const fence = FENCE.exec(lines[start]);
  if (fence) {
    const end = lines.findIndex((line, n) => n > start && closes(line, fence[1]));
    return end < 0 ? lines.length : end + 1;
  }
  if (HEADING.test(lines[start]) || RULE.test(lines[start])) return start + 1;
  if (ITEM.test(lines[start])) return endOfList(lines, start);
  const same = QUOTE.test(lines[start]);
  let end = start + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && QUOTE.test(lines[end]) === same && !begins(lines[end])) end += 1;
  return end;
}

const closes = (line, fence) => {
  const bare = line.trim();
  return bare.length >= fence.length && bare.startsWith(fence) && !bare.replaceAll(fence[0], "");
};
const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line);

function endOfList(lines, start) {
  let end = start + 1;
  while (end < lines.length) {
    const line = lines[end];
    const goesOn = BLANK.test(line) || /^ {2,}/.test(line) || (ITEM.test(line) && !RULE.test(line));
    const lazily = !BLANK.test(lines[end - 1]) && !begins(line) && !QUOTE.test(line);
    if (!goesOn && !lazily) break;
    end += 1;
  }
  while (BLANK.test(lines[end - 1])) end -= 1;
  return end;
}

function build(lines, depth) {
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(lines[0]);
  if (heading) return marked(make(`h${Math.min(4, heading[1].length)}`), heading[2].trimEnd().replace(/[ \t]#+$/, ""), 0);
  if (RULE.test(lines[0])) return make("hr");
  if (depth < DEEPEST && QUOTE.test(lines[0])) {
    return make("blockquote", {}, ...inner(lines.map((line) => line.replace(QUOTE, "")), depth));
  }
  if (depth < DEEPEST && ITEM.test(lines[0])) return list(lines, depth);
  if (lines.length > 1 && lines[0].includes("|") && DELIMITERS.test(lines[1])) return table(lines);
  return marked(make("p"), lines.join("\n"), 0);
}

const inner = (lines, depth) => split(lines).map((block) => build(block, depth + 1)).filter(Boolean);

function code(lines, fence) {
  const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = make("button", { type: "button", class: "plain", "data-copy": true }, t("copy"));
  const head = make("div", { class: "code-head" }, make("span", {}, fence[2].trim().split(/\s/, 1)[0].slice(0, 30) || "code"), button);
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, make("code", {}, text)));
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const start = ordered ? parseInt(first[2], 10) : null;
  const made = make(ordered ? "ol" : "ul", start !== null && start !== 1 ? { start } : {});
  for (const item of items(lines, first[1].length)) {
    const blocks = split(item);
    const entry = make("li");
    blocks.forEach((block, place) => {
      const built = build(block, depth + 1);
      // A paragraph at the start of an item needs no element of its own.
      if (built?.tagName === "P" && place === 0) entry.append(...built.childNodes);
      else if (built) entry.append(built);
    });
    made.append(entry);
  }
  return made;
}

/** The lines of each item at `indent`, without their marks and indentation. */
function items(lines, indent) {
  const found = [];
  let width = 0;
  for (const line of lines) {
    const mark = ITEM.exec(line);
    if (mark && (mark[1].length <= indent + 1 || !found.length)) {
      width = mark[0].length;
      found.push([line.slice(width).replace(/^\[( |x|X)\] /, (_, done) => (done === " " ? "☐ " : "☑ "))]);
    } else {
      const spaces = /^ */.exec(line)[0].length;
      found.at(-1).push(line.slice(Math.min(spaces, Math.max(width, 2))));
    }
  }
  return found;
}

function table(lines) {
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "mid" : "end") : ""));
  const row = (line, name) => make("tr", {}, ...cells(line).slice(0, 50).map((cell, column) =>
    marked(make(name, sides[column] ? { class: sides[column] } : {}), cell, 0)));
  const body = make("tbody", {}, ...lines.slice(2, 500).map((line) => row(line, "td")));
  return make("div", { class: "table-wrap", tabindex: "0" }, make("table", {}, make("thead", {}, row(lines[0], "th")), body));
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/)
  .map((cell) => cell.trim().replaceAll("\\|", "|"));

// ── within a block ─────────────────────────────────────────────────────────────────────────────

function marked(parent, text, depth, linked = false) {
  if (text.length > LONGEST || depth > DEEPEST) {
    lines(parent, text);
    return parent;
  }
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    lines(parent, text.slice(at, found.index));
    one(parent, found, depth, linked);
    at = found.index + found[0].length;
  }
  lines(parent, text.slice(at));
  return parent;
}

function one(parent, found, depth, linked) {
  const [whole, escaped, , codeText, words, address, bracketed, strong, strong2, struck, em, em2, bare] = found;
  const nested = (name, text) => parent.append(marked(make(name), text, depth + 1, linked));
  if (escaped !== undefined) parent.append(escaped);
  else if (codeText !== undefined) parent.append(make("code", {}, codeText.replace(/^ (.*) $/s, "$1")));
  else if (strong !== undefined || strong2 !== undefined) nested("strong", strong ?? strong2);
  else if (struck !== undefined) nested("s", struck);
  else if (em !== undefined || em2 !== undefined) nested("em", em ?? em2);
  else if (linked) parent.append(whole);
  else if (words !== undefined) link(parent, address, words, depth, whole);
  else if (bracketed !== undefined) link(parent, bracketed, "", depth, whole);
  else {
    const end = bareEnd(bare);
    link(parent, bare.slice(0, end), "", depth, bare.slice(0, end));
    parent.append(bare.slice(end));
  }
}

/** A link if it leads to the web or to mail; otherwise its source as text. */
function link(parent, address, words, depth, whole) {
  const target = harmless(address);
  if (!target) return void parent.append(whole);
  const made = make("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" });
  parent.append(marked(made, words || address, depth + 1, true));
}

/** Where a bare URL ends: trailing punctuation, and a bracket it does not open, belong to the sentence. */
function bareEnd(address) {
  let end = address.length;
  while (/[.,;:!?*_~)\]]/.test(address[end - 1])) {
    const opens = address.slice(0, end).split("(").length;
    if (address[end - 1] === ")" && opens >= address.slice(0, end).split(")").length) break;
    end -= 1;
  }
  return end;
}

function harmless(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** Text with its line breaks. */
function lines(parent, text) {
  text.split("\n").forEach((line, place) => {
    if (place) parent.append(make("br"));
    if (line) parent.append(line);
  });
}
