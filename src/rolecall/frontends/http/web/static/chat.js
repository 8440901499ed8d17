// The chat page: messages go to POST /chat/page, answers come as the events of the task.

import { Answer, atEnd, running, toEnd } from "./answer.js";
import { anything, bodyOf, giveBack, listen as listenForFiles, shownAs, taken } from "./attach.js";
import { all, ask, clock, copy, copyText, find, make, notify, parts, quiet, Refused, say, storage, t, tried } from "./dom.js";
import { begin as beginList, mark, remember } from "./kept.js";
import { live } from "./live.js";
import { dictation, readAloud } from "./speech.js";

const REMINDERS = "/reminders";

const chat = find("[data-chat]");
const thread = find("[data-thread]");
const welcome = find("[data-welcome]");
const box = find("[data-message]");
const stopButton = find("[data-stop]");
const role = find("[data-role]");
const model = find("[data-model]");

let name = "";
let opened = 0;
let opening;
let lastSaid = "";
/** The message that failed last, as JSON, and its key: the server may have it, so that sent again it is the same. */
let unsure = {};
/** How many messages are on their way to the server. */
let sending = 0;
/** The message that the next one replaces: its row. */
let editing = null;
/** The id of the last notice shown, or where the stream of notices began. */
let heard = "";
/** Turns of the conversation that the server told of, in whatever window their messages were written. */
const told = new Set();

// ── the thread ─────────────────────────────────────────────────────────────────────────────────

/** While a message is sent or answered, no other one can be replaced. */
function isBusy() {
  return thread.classList.toggle("busy", running.size + sending > 0);
}

function changed() {
  stopButton.hidden = running.size === 0;
  find("[data-keys]").hidden = running.size > 0;
  isBusy();
  if (running.size) return;
  remember(name, lastSaid);
  keepUp();
}

/** Adds a message of the user; returns its row. */
function put(text, { turn = "", at = Date.now(), shown = [] } = {}) {
  welcome.hidden = true;
  const row = copy(find("[data-said]"));
  const part = parts(row);
  say(part.said, text);
  part.said.hidden = !text;
  part.attached.hidden = !shown.length;
  part.attached.append(...shown);
  say(part.at, clock(at).slice(0, 5));
  part.at.title = new Date(at).toLocaleString();
  Object.assign(row, { text, turn });
  thread.append(row);
  return row;
}

function clear() {
  for (const answer of [...running.values()]) answer.leave();
  edit(null);
  for (const element of [...thread.children]) if (element !== welcome) element.remove();
  changed();
}

/** Shows what agents and programs send to this conversation without a question; called again, in another one. */
const listen = live(() => name && `/chat/notices/${encodeURIComponent(name)}?messages=true&after=${heard}`, {
  listening: (_, id) => { heard = id; },
  accepted: ({ turn }, id) => {
    heard = id;
    told.add(turn);
    keepUp();
  },
  cleared: ({ turn }, id) => {
    heard = id;
    forget(Number(turn));
  },
  notice: ({ text, plain, turn }, id) => {
    heard = id;
    if (turn && !isMissing([turn])) return; // of a schedule, and followed as a task
    const follows = atEnd();
    welcome.hidden = true;
    Object.assign(new Answer(), { turn }).settle("done", text, { plain });
    if (follows) toEnd();
  },
});

/** Shows the conversation `wanted`, or a new one. Messages sent meanwhile wait for it. */
function open(wanted) {
  opening = load(wanted);
  return opening;
}

async function load(wanted) {
  const mine = ++opened;
  name = heard = "";
  told.clear();
  listen(); // no longer to what the conversation before is told
  name = wanted;
  quiet(true);
  clear();
  welcome.hidden = Boolean(wanted);
  mark(name);
  const found = wanted ? await tried(() => ask("GET", `/web/chat/${encodeURIComponent(wanted)}`)) : null;
  if (mine !== opened) return;
  if (found?.cut) thread.append(make("p", { class: "faint" }, t("earlier_hidden", { count: found.exchanges.length })));
  for (const one of found?.exchanges ?? []) showExchange(one);
  for (const task of found?.tasks ?? []) {
    new Answer(putStored(task), changed).follow(task.id, task.place, task.at);
  }
  if (found && !found.exchanges.length && !found.tasks.length) welcome.hidden = false;
  listen();
  toEnd();
}

/** The turns in the thread, in its order: of each element its own, 0 for that of a command or a notice. */
const turnsShown = () => [...thread.children].map((element) => Number(element.turn ?? element.answer?.turn) || 0);

/** Takes the turns up to the number `last` out of the thread, as the conversation was cleared. */
function forget(last) {
  const count = turnsShown().findLastIndex((turn) => turn && turn <= last) + 1;
  edit(null);
  for (const element of [...thread.children].slice(0, count)) {
    element.answer?.leave();
    if (element !== welcome) element.remove();
  }
  welcome.hidden = thread.childElementCount > 1;
  changed();
}

/** Whether one of `turns` is not in the thread: neither its message nor, as of a schedule, its answer alone. */
function isMissing(turns) {
  const shown = new Set(turnsShown());
  return [...turns].some((turn) => Number(turn) && !shown.has(Number(turn))); // those of commands are no numbers
}

const keepUp = () => { if (isMissing(told)) catchUp(); };

/** Shows what was said elsewhere: in another window, on another device, or while the page was hidden. */
async function catchUp() {
  if (document.hidden || !name || isBusy() || editing) return;
  const here = opened;
  const before = [...told];
  const found = await ask("GET", `/web/chat/${encodeURIComponent(name)}`).catch(() => null);
  if (!found || here !== opened || isBusy() || editing) return;
  for (const turn of before) told.delete(turn);
  const there = [...found.exchanges, ...found.tasks].map(({ turn }) => Number(turn));
  const newest = turnsShown().findLast(Boolean);
  if (isMissing(there) || (newest && !there.includes(newest))) open(name);
}

/** Adds a stored message of the user, if its turn has one. */
function putStored(one) {
  const shown = stored(one);
  return one.said || shown.length ? put(one.said, { turn: one.turn, at: one.at, shown }) : null;
}

function showExchange(one) {
  const row = putStored(one);
  const state = one.state ?? "done";
  // A turn that was stopped before it began has no answer.
  if (one.answer || state !== "done") Object.assign(new Answer(row, changed), { turn: one.turn }).settle(state, one.answer || (state === "failed" ? t("not_answered") : ""), one);
}

const stored = ({ images = [], files = [] }) => shownAs([
  ...images.map((id) => ({ kind: "images", name: t("picture"), url: `/web/pictures/${id}/${encodeURIComponent(name)}` })),
  ...files.map((file) => ({ kind: "files", name: file.name })),
]);

async function send(text, files = [], again = null) {
  await opening;
  if (!name) {
    name = `web-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    history.pushState(null, "", `#${name}`);
    listen();
  }
  const here = opened;
  const before = again ? cutFrom(again) : [];
  const row = put(text, { shown: [...shownAs(files), ...(again ? all(".attached > *", again).map((one) => one.cloneNode(true)) : [])] });
  const answer = new Answer(row, changed);
  toEnd();
  quiet();
  lastSaid = text;
  const body = { name, text, role: role.value, model: model?.value ?? "", again: again?.turn ?? "", ...bodyOf(files) };
  const message = JSON.stringify(body);
  const key = unsure.message === message ? unsure.key : crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  unsure = {};
  sending += 1;
  isBusy();
  try {
    const task = await ask("POST", "/chat/page", body, { "Idempotency-Key": key });
    if (here !== opened) return;
    if (Number(task.turn) && !isMissing([task.turn])) { // it had come the first time, and is shown by now
      row.remove();
      answer.element.remove();
      return;
    }
    row.turn = task.turn;
    if (task.id) answer.follow(task.id, task.place);
    else await settleCommand(answer, name, text, task);
    remember(name, text);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    unsure = { message, key };
    notify(error.message, true);
    row.remove();
    answer.element.remove();
    if (here === opened) thread.append(...before);
    giveBack(files);
    const edited = again && here === opened && (text !== again.text || files.length > 0);
    if (!box.value && (edited || !again)) {
      if (edited) edit(again);
      write(text);
    }
    if (thread.childElementCount === 1) welcome.hidden = false;
  } finally {
    sending -= 1;
    if (!isBusy()) keepUp();
  }
}

/** Shows the reply of a command in the conversation `name`; under that of /reminders a button deletes each. */
async function settleCommand(answer, name, text, task) {
  answer.settle(task.state, task.text, task);
  if (text.trim() !== REMINDERS) return;
  const { reminders } = await ask("GET", `/chat/reminders?conversation_id=${encodeURIComponent(name)}`);
  answer.foot.append(...reminders.map(({ id }, place) => {
    const button = make("button", { type: "button", class: "plain" }, t("delete_reminder", { number: place + 1 }));
    button.addEventListener("click", () => tried(() => removeReminder(answer, name, id)));
    return button;
  }));
}

async function removeReminder(answer, name, id) {
  await ask("DELETE", `/chat/reminders/${id}?conversation_id=${encodeURIComponent(name)}`);
  await settleCommand(answer, name, REMINDERS, await ask("POST", "/chat/async", { text: REMINDERS, conversation_id: name }));
}

/** Takes a message and what follows it out of the thread. */
function cutFrom(row) {
  const children = [...thread.children];
  const gone = children.slice(children.indexOf(row));
  for (const element of gone) element.remove();
  return gone;
}

// ── actions ────────────────────────────────────────────────────────────────────────────────────

function write(text) {
  box.value = text;
  grow();
  box.focus();
}

function grow() {
  box.style.height = "0";
  box.style.height = `${Math.min(box.scrollHeight, 224)}px`;
}

const stop = () => Promise.all([...running.keys()].map(cancel));
const cancel = (id) => tried(async () => {
  const task = await ask("POST", `/chat/task/${id}/cancel`);
  running.get(id)?.hear(task.state, task);
});

/** Begins to edit a message, or ends that with null. */
function edit(row) {
  if (editing) editing.classList.remove("edited");
  editing = row;
  find("[data-edits]").hidden = !row;
  if (!row) return;
  row.classList.add("edited");
  write(row.text);
}

/** Goes on with the edit that a reload interrupted: what was written is in the box. */
function resume() {
  const turn = storage?.getItem("edited");
  const row = turn && all(".said-row", thread).find((one) => one.turn === turn);
  if (!row || !box.value || isBusy()) return;
  const written = box.value;
  edit(row);
  write(written);
}

function submit() {
  const text = box.value.trimEnd().replace(/^\s*(?:\n|(?=\/\w))/, ""); // but not the indentation of a first line
  if (!text && !anything()) return;
  const again = editing;
  edit(null);
  write("");
  send(text, taken(), again);
}

const onSaid = {
  edit: (row) => edit(row),
  "copy-said": (row, button) => copyText(button, row.text),
  cancel: (row) => cancel(row.nextElementSibling.answer.id),
};
const onAnswer = {
  copy: ({ answer }, button) => copyText(button, answer.text),
  again: ({ answer }) => send(answer.question.text, [], answer.question),
  listen: ({ answer }, button) => readAloud(answer.body, button),
};

function act(button) {
  const row = button.closest(".said-row");
  if (row) onSaid[button.dataset.act](row, button);
  else onAnswer[button.dataset.act](button.closest(".answer"), button);
}

function fromAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // not a conversation
  }
}

function toggleKept(shown) {
  const kept = find("[data-kept]");
  kept.classList.toggle("shown", shown);
  find("[data-kept-toggle]").setAttribute("aria-expanded", String(kept.classList.contains("shown")));
}

function begin() {
  history.pushState(null, "", location.pathname);
  open("");
  toggleKept(false);
  box.focus();
}

/** Whether the key belongs to an input method; Safari ends the composition before the key that does so. */
const composes = (event) => event.isComposing || event.keyCode === 229;
/** Where there is no Shift key, Enter is for new lines. */
const touched = matchMedia("(pointer: coarse)");

box.addEventListener("input", grow);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !composes(event) && !touched.matches) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !box.value && lastSaid) {
    event.preventDefault();
    write(lastSaid);
  }
});
addEventListener("keydown", (event) => {
  if (find("dialog[open], :popover-open")) return;
  if (event.key === "Escape" && editing) {
    edit(null);
    write("");
  } else if (event.key === "Escape" && running.size && !composes(event)) stop();
  else if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    toggleKept(true);
    find("[data-kept-search]").focus();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    begin();
  }
});
find("[data-composer]").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
stopButton.addEventListener("click", stop);
find("[data-edit-end]").addEventListener("click", () => {
  edit(null);
  write("");
});
find("[data-new]").addEventListener("click", begin);
find("[data-kept-toggle]").addEventListener("click", () => toggleKept());
find("[data-kept-list]").addEventListener("click", (event) => { if (event.target.closest("a")) toggleKept(false); });
chat.addEventListener("click", (event) => {
  const target = event.target.closest("button");
  if (target?.matches("[data-idea]")) write(target.textContent);
  else if (target?.matches("[data-copy]")) copyText(target, find("code", target.closest(".code").lastElementChild).textContent);
  else if (target?.matches("[data-choice]")) tried(() => target.closest(".answer").answer.choose(target));
  else if (target?.matches("[data-act]")) act(target);
});
addEventListener("popstate", () => { if (fromAddress() !== name) open(fromAddress()); });
document.addEventListener("visibilitychange", catchUp);
addEventListener("pageshow", (event) => { if (event.persisted) open(name); });
addEventListener("pagehide", () => {
  window.speechSynthesis?.cancel();
  storage?.setItem("draft", editing && box.value === editing.text ? "" : box.value);
  storage?.setItem("edited", editing?.turn ?? "");
});
listenForFiles(chat, box);
dictation(box);
beginList((gone) => { if (gone === name) begin(); });

box.value = storage?.getItem("draft") ?? "";
grow();
open(fromAddress()).then(resume);
