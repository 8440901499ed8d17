// Building and filling elements. Text is only ever inserted as text: nothing here parses HTML.

import { texts } from "./texts.js";

/** A text of the page, with `values` put in. */
export const t = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

export const find = (selector, within = document) => within.querySelector(selector);
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element with attributes and children; a child that is a string becomes text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A new copy of what a <template> holds. */
export const copy = (template) => template.content.firstElementChild.cloneNode(true);

/** The named parts of an element: those with data-f. */
export function parts(element) {
  const found = {};
  for (const part of all("[data-f]", element)) found[part.dataset.f] = part;
  return found;
}

/** Sets the text only if it differs, so that nothing flickers and selections stay. */
export function say(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes `list` hold one element per row, in order: known ones are filled again, new ones are copied from `template`,
 * others are removed. `fill(element, row, fresh)`.
 */
export function keep(list, rows, template, key, fill) {
  const known = new Map(all(":scope > [data-key]", list).map((element) => [element.dataset.key, element]));
  let before = null;
  for (const row of rows) {
    const name = String(key(row));
    let element = known.get(name);
    const fresh = !element;
    if (fresh) {
      element = copy(template);
      element.dataset.key = name;
    }
    known.delete(name);
    fill(element, row, fresh);
    const place = before ? before.nextElementSibling : list.firstElementChild;
    if (place !== element) list.insertBefore(element, place);
    before = element;
  }
  for (const element of known.values()) element.remove();
}

/** An error of the server, with its message. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function opened() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

/** What this tab keeps while it is open; null where the browser keeps nothing. */
export const storage = opened();

const token = () => find("meta[name=csrf]")?.content ?? "";

/** Sends a request; returns the JSON of the answer, or null if there is none. Throws Refused. */
export async function ask(method, path, body = undefined, headers = {}) {
  const given = { Accept: "application/json", ...headers };
  if (method !== "GET") given["X-CSRF-Token"] = token();
  if (body !== undefined) given["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: given, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    if (path !== "/web/pulse") document.dispatchEvent(new Event("lost"));
    throw new Refused(0, t("cannot_reach_server"));
  }
  if (answer.status === 401 && !path.startsWith("/login")) logIn();
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, told.detail || t("server_answered", { status: answer.status }));
  return told;
}

/** Opens the login page, which leads back here; the part after # goes with it, as when the server leads there. */
export function logIn() {
  location.assign(`/web/login?next=${encodeURIComponent(location.pathname + location.search)}${location.hash}`);
}

/** Copies `text`, and says so on the button for a moment. */
export async function copyText(button, text) {
  const before = [...button.childNodes];
  let words = t("copied");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    words = t("cannot_copy");
  }
  button.replaceChildren(words);
  setTimeout(() => button.replaceChildren(...before), 1500);
}

/** Acts at the second press within some seconds; until then the button asks with `words`. */
export function sure(button, words, act) {
  if (button.classList.contains("sure")) return act();
  const before = button.textContent;
  const calm = () => {
    button.classList.remove("sure");
    say(button, before);
  };
  button.classList.add("sure");
  say(button, words);
  setTimeout(calm, 4000);
  return undefined;
}

let hiding;

/** Hides the message in the corner; with `onlyBad` only one of a failure. */
export function quiet(onlyBad = false) {
  const notice = find("[data-notice]");
  if (!onlyBad || notice.classList.contains("bad")) notice.hidden = true;
}

/** Shows a message in the corner for some seconds. */
export function notify(text, bad = false) {
  const notice = find("[data-notice]");
  notice.textContent = text;
  notice.classList.toggle("bad", bad);
  notice.hidden = false;
  notice.onclick = () => quiet();
  clearTimeout(hiding);
  hiding = setTimeout(() => { notice.hidden = true; }, bad ? 9000 : 5000);
}

/** Runs `act` and shows an error of the server. */
export async function tried(act) {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notify(error.message, true);
    return undefined;
  }
}

/** An amount of money in US dollars. */
export const money = (amount) => (amount ? `$${amount.toFixed(amount < 1 ? 4 : 2)}` : "$0");

// ── words for numbers ──────────────────────────────────────────────────────────────────────────

/** 12 ms, 1.23 s, 12.3 s, 2 min */
export function seconds(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 100_000 ? `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s` : duration(ms / 1000);
}

/** 4 s, 12 min, 3 h 5 min, 2 d 4 h */
export function duration(all) {
  const whole = Math.max(0, Math.floor(all));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${whole} s`;
}

/** A count with its noun: keys of the texts for one and for many. */
export const many = (count, one, more = `${one}s`) => `${whole(count)} ${t(count === 1 ? one : more)}`;
export const whole = (number) => Number(number).toLocaleString("en").replaceAll(",", "\u2009");

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const MOMENT = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const clock = (ms) => CLOCK.format(ms);

/** Shows a moment relative to now, with the exact time as its title. */
export function ago(element, ms) {
  const passed = (Date.now() - ms) / 1000;
  say(element, passed < 5 ? t("just_now") : passed < 86_400 ? t("ago", { duration: duration(passed) }) : MOMENT.format(ms));
  if (element.dataset.ms !== String(ms) || !element.title) {
    element.dataset.ms = ms;
    element.dateTime = new Date(ms).toISOString();
    element.title = new Date(ms).toLocaleString();
  }
}

/** Moves the focus among the elements of `list()` with the arrow, Home and End keys. */
export function walk(container, list) {
  container.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const items = list();
    const at = items.indexOf(document.activeElement);
    if (at < 0 || !items.length) return;
    event.preventDefault();
    items[Math.min(items.length - 1, Math.max(0, at + step))].focus();
  });
}
