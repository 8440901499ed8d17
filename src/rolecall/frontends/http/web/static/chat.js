// The chat page: messages go to POST /chat/async, answers come as the events of the task.

import { ago, all, ask, copy, find, keep, make, notify, parts, Refused, say, seconds, t, tried, walk } from "./dom.js";
import { show } from "./markdown.js";

const ENDS = ["done", "failed", "cancelled"];

const chat = find("[data-chat]");
const scroll = find("[data-scroll]");
const thread = find("[data-thread]");
const welcome = find("[data-welcome]");
const box = find("[data-message]");
const stopButton = find("[data-stop]");
const role = find("[data-role]");

let name = "";
/** The unfinished tasks of the conversation shown, by id. */
const running = new Map();
let opened = 0;
let opening;
let lastSaid = "";
/** The notices of the conversation shown. */
let notices;

// ── one answer ─────────────────────────────────────────────────────────────────────────────────

class Answer {
  /** Adds an empty answer to the thread. */
  constructor() {
    this.element = copy(find("[data-answer]"));
    Object.assign(this, parts(this.element));
    this.characters = [];
    this.hops = [];
    thread.append(this.element);
  }

  follow(id) {
    this.id = id;
    this.began = Date.now();
    this.element.classList.add("runs");
    running.set(id, this);
    this.ticking = setInterval(() => this.tick(), 1000);
    this.tick();
    this.source = new EventSource(`/web/chat/tasks/${id}/events`);
    for (const kind of ["queued", "started", "delta", ...ENDS]) {
      this.source.addEventListener(kind, (event) => this.hear(kind, JSON.parse(event.data), parseInt(event.lastEventId, 10)));
    }
    this.source.addEventListener("error", () => this.lost());
    changed();
  }

  hear(kind, data, ms) {
    if (ms) this.since ??= ms;
    if (ms && ENDS.includes(kind)) this.lasted = ms - this.since;
    if (kind === "delta") this.add(data.position, data.text);
    else if (kind === "started") this.start(data.role, data.instance, data.attempt);
    else if (kind === "queued") this.wait(data);
    else if (ENDS.includes(data.state)) this.end(data);
    else this.stand(data);
  }

  /** Shows the task as it is. */
  stand(task) {
    this.characters = [...task.text];
    if (task.role) this.start(task.role, task.role, 0, true);
    else if (task.place) this.wait(task);
    this.draw();
  }

  wait({ place, reason }) {
    say(this.trail, place ? t("queued_behind", { count: place }) : reason ? t("waiting_because", { reason }) : t("queued"));
  }

  start(roleName, instance, attempt, known = false) {
    if (!known) this.characters = [];
    if (this.hops.at(-1)?.role !== roleName) this.hops.push({ role: roleName, instance });
    this.hops.at(-1).instance = instance;
    this.trail.replaceChildren(...this.hops.map((hop, place) => make("span",
      { class: place === this.hops.length - 1 ? "hop now" : "hop", title: hop.instance }, hop.role)));
    if (attempt > 1) this.trail.append(make("span", { class: "pill warn" }, t("attempt", { number: attempt })));
    if (!known) this.draw();
  }

  add(position, text) {
    if (position < this.characters.length) this.characters.length = position;
    if (position > this.characters.length) return void this.lookAgain();
    this.characters.push(...text);
    this.draw();
  }

  /** Earlier events are no longer stored, but the task has their text. */
  lookAgain() {
    this.looking ??= ask("GET", `/chat/task/${this.id}`).then((task) => {
      this.looking = null;
      if (running.has(this.id) && !ENDS.includes(task.state)) this.stand(task);
    }, () => {});
  }

  /** Draws once per frame, however many events came. */
  draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      const follows = atEnd();
      show(this.body, this.characters.join(""));
      if (follows) toEnd();
    });
  }

  tick() {
    say(this.foot, `${Math.round((Date.now() - this.began) / 1000)} s`);
  }

  lost() {
    if (this.source.readyState !== EventSource.CLOSED) return;
    // The stream cannot be resumed; the task says how it ended.
    ask("GET", `/chat/task/${this.id}`).then((task) => this.hear(task.state, task), (error) => this.end({
      state: "failed", text: "", error: { text: error.message }, usage: {},
    }));
  }

  end(task) {
    this.source?.close();
    clearInterval(this.ticking);
    running.delete(this.id);
    this.element.classList.remove("runs");
    for (const hop of all(".now", this.trail)) hop.classList.remove("now");
    this.settle(task.state, task.state === "failed" ? task.error?.text ?? "" : task.text, this.facts(task));
    if (task.state === "done") say(find("[data-spoken]"), task.text.slice(0, 600));
    changed();
    remember();
  }

  facts(task) {
    const tokens = task.usage?.tokens_out;
    return [
      seconds(this.lasted || Date.now() - this.began),
      task.model,
      tokens ? t("tokens", { count: tokens }) : "",
      task.finish === "length" ? t("cut_off") : "",
    ];
  }

  /** Shows the final state. */
  settle(state, text, facts = []) {
    const follows = atEnd();
    this.characters = [...(text || (state === "cancelled" ? this.characters : ""))];
    this.element.classList.toggle("failed", state === "failed");
    this.element.classList.toggle("stopped", state === "cancelled");
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = null;
    show(this.body, this.characters.join(""));
    const words = [state === "cancelled" ? t("stopped") : "", ...facts].filter(Boolean).map((word) => make("span", {}, word));
    const button = this.characters.length ? [make("button", { type: "button", class: "plain", "data-copy-answer": true }, t("copy"))] : [];
    this.foot.replaceChildren(...button, ...words);
    this.element.answer = this;
    if (follows) toEnd();
  }
}

// ── the thread ─────────────────────────────────────────────────────────────────────────────────

const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
const toEnd = () => { scroll.scrollTop = scroll.scrollHeight; };

function changed() {
  stopButton.hidden = running.size === 0;
  find("[data-keys]").hidden = running.size > 0;
}

function put(text) {
  welcome.hidden = true;
  thread.append(make("div", { class: "said" }, text));
}

function clear() {
  for (const answer of running.values()) {
    answer.source?.close();
    clearInterval(answer.ticking);
  }
  running.clear();
  notices?.close();
  notices = undefined;
  for (const element of [...thread.children]) if (element !== welcome) element.remove();
  changed();
}

/** Shows what agents and programs send to this conversation without a question. */
function listen() {
  if (notices || !name) return;
  notices = new EventSource(`/chat/notices/${encodeURIComponent(name)}`);
  notices.addEventListener("notice", (event) => {
    const follows = atEnd();
    welcome.hidden = true;
    new Answer().settle("done", JSON.parse(event.data).text);
    if (follows) toEnd();
  });
}

/** Shows the conversation `wanted`, or a new one. Messages sent meanwhile wait for it. */
function open(wanted) {
  opening = load(wanted);
  return opening;
}

async function load(wanted) {
  const mine = ++opened;
  name = wanted;
  clear();
  welcome.hidden = Boolean(wanted);
  mark();
  const found = wanted ? await tried(() => ask("GET", `/web/chat/${encodeURIComponent(wanted)}`)) : null;
  if (mine !== opened) return;
  const messages = found?.messages ?? [];
  messages.forEach((message, place) => {
    const state = { error: "failed", stopped: "cancelled" }[message.mark] ?? "done";
    if (message.role !== "user") return new Answer().settle(state, message.text);
    put(message.text);
    // A turn that failed or was stopped before it started has no answer in the history.
    const answered = messages[place + 1]?.role === "assistant";
    if (!answered && state !== "done") new Answer().settle(state, state === "failed" ? t("not_answered") : "");
    return undefined;
  });
  for (const task of found?.tasks ?? []) {
    put(task.said);
    new Answer().follow(task.id);
  }
  if (found && !found.messages.length && !found.tasks.length) welcome.hidden = false;
  listen();
  toEnd();
}

async function send(text) {
  await opening;
  if (!name) {
    name = `web-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    history.pushState(null, "", `#${name}`);
  }
  const here = opened;
  put(text);
  const said = thread.lastElementChild;
  const answer = new Answer();
  toEnd();
  lastSaid = text;
  try {
    const body = { text, conversation_id: name, ...(role.value ? { role: role.value } : {}) };
    const task = await ask("POST", "/chat/async", body, { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` });
    if (here !== opened) return;
    if (task.id) answer.follow(task.id);
    else answer.settle(task.state, task.text);
    listen();
    remember();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notify(error.message, true);
    said.remove();
    answer.element.remove();
    if (!box.value) write(text);
    if (thread.childElementCount === 1) welcome.hidden = false;
  }
}

function write(text) {
  box.value = text;
  grow();
  box.focus();
}

const stop = () => Promise.all([...running.keys()].map((id) => tried(() => ask("POST", `/chat/task/${id}/cancel`))));

// ── stored conversations ────────────────────────────────────────────────────────────

const keptList = find("[data-kept-list]");

/** Lists them; the transcript of the newest may not be written yet. */
async function remember() {
  const found = await ask("GET", "/web/chat").catch(() => null);
  if (!found) return;
  const rows = found.conversations;
  if (name && !rows.some((row) => row.name === name)) rows.unshift({ name, said: lastSaid || name, last: Date.now() });
  keep(keptList, rows, find("[data-kept-row]"), (row) => row.name, (element, row) => {
    const { title, when } = parts(element);
    find("a", element).href = `#${row.name}`;
    say(title, row.said || row.name);
    ago(when, row.last);
  });
  if (!rows.length) keptList.replaceChildren(make("li", { class: "none" }, t("no_chats")));
  else find(".none", keptList)?.remove();
  mark();
}

function mark() {
  for (const element of all("[data-key]", keptList)) {
    const here = element.dataset.key === name;
    element.classList.toggle("open", here);
    find("a", element).toggleAttribute("aria-current", here);
  }
}

function toggleKept(shown) {
  const kept = find("[data-kept]");
  kept.classList.toggle("shown", shown);
  find("[data-kept-toggle]").setAttribute("aria-expanded", String(kept.classList.contains("shown")));
}

// ── actions ──────────────────────────────────────────────────────────────────────────────────────

function grow() {
  box.style.height = "0";
  box.style.height = `${Math.min(box.scrollHeight, 224)}px`;
}

function submit() {
  const text = box.value.trim();
  if (!text) return;
  write("");
  send(text);
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    say(button, t("copied"));
  } catch {
    say(button, t("cannot_copy"));
  }
  setTimeout(() => say(button, t("copy")), 1500);
}

function fromAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // not a conversation
  }
}

box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !box.value && lastSaid) {
    event.preventDefault();
    write(lastSaid);
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running.size && !event.isComposing) stop();
});
find("[data-composer]").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
stopButton.addEventListener("click", stop);
find("[data-new]").addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  open("");
  toggleKept(false);
  box.focus();
});
find("[data-kept-toggle]").addEventListener("click", () => toggleKept());
keptList.addEventListener("click", () => toggleKept(false));
chat.addEventListener("click", (event) => {
  const target = event.target.closest("button");
  if (target?.matches("[data-idea]")) write(target.textContent);
  else if (target?.matches("[data-copy]")) copyText(target, find("code", target.closest(".code").lastElementChild).textContent);
  else if (target?.matches("[data-copy-answer]")) copyText(target, target.closest(".answer").answer.characters.join(""));
});
walk(keptList, () => all("a", keptList));
addEventListener("popstate", () => { if (fromAddress() !== name) open(fromAddress()); });
addEventListener("pageshow", (event) => { if (event.persisted) open(name); });

await open(fromAddress());
remember();
