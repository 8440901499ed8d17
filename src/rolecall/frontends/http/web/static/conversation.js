// One conversation: its turns as bars, and its log, updated as it grows.

import { ago, all, ask, clock, copy, find, keep, money, notify, parts, say, seconds, sure, t, tried, whole } from "./dom.js";
import { live } from "./live.js";

const MOST_LINES = 5000;

const page = find("[data-conversation]");
const which = page.dataset.conversation;
const log = find("[data-log]");
const lines = find("[data-lines]");
const keepUp = find("[data-keep-up]");
const turnList = find("[data-turn-list]");

let after = page.dataset.after;

// ── log ────────────────────────────────────────────────────────────────────────────────────────

function add(record) {
  const line = copy(find("[data-log-line]"));
  const part = parts(line);
  line.className = record.tone;
  line.dataset.turn = record.turn;
  line.title = record.turn ? t("line_of", record) : record.instance;
  say(part.at, clock(record.ms));
  say(part.since, seconds(record.since));
  say(part.by, record.instance);
  say(part.word, record.word);
  say(part.text, record.shown);
  lines.append(line);
  while (lines.childElementCount > MOST_LINES) lines.firstElementChild.remove();
}

const toEnd = () => { if (keepUp.checked) log.scrollTop = log.scrollHeight; };

function grew(data) {
  for (const record of data.records) {
    if (after && !later(record.id, after)) continue;
    after = record.id;
    add(record);
  }
  toEnd();
  draw(data);
}

function later(id, than) {
  const [a, b] = [id.split("-").map(Number), than.split("-").map(Number)];
  return a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]);
}

// ── turns ──────────────────────────────────────────────────────────────────────────────────────

function draw(data) {
  keep(turnList, data.turns, find("[data-turn-row]"), (turn) => turn.turn, fillTurn);
  const { shown } = data;
  const pill = find("[data-running]");
  say(pill, t(shown.running ? "running" : "idle"));
  pill.classList.toggle("runs", Boolean(shown.running));
  find("[data-stop]").hidden = !shown.running;
  say(find("[data-turns]"), shown.turns);
  say(find("[data-errors]"), shown.errors);
  say(find("[data-waiting]"), shown.waiting.length);
  ago(find("[data-last]"), shown.last);
}

function fillTurn(element, turn) {
  const part = parts(element);
  const last = turn.hops.at(-1);
  const runs = turn.state === "running" || turn.state === "waiting";
  element.id = `turn-${turn.turn}`;
  element.dataset.depth = turn.depth;
  // A running turn lasts until now.
  const total = runs ? Math.max(turn.total, turn.now - turn.ms) : turn.total;
  if (runs && last && !last.word) last.ended = total;
  say(part.said, turn.said);
  part.said.title = turn.said;
  say(part.id, t("turn_number", turn));
  part.id.href = `#turn-${turn.turn}`;
  say(part.total, seconds(total));
  say(part.state, turn.state);
  part.state.className = `pill ${turn.tone}`;
  while (part.hops.childElementCount > turn.hops.length) part.hops.lastElementChild.remove();
  turn.hops.forEach((hop, place) => {
    if (!part.hops.children[place]) part.hops.append(copy(find("[data-hop-row]")));
    fillHop(part.hops.children[place], hop, total);
  });
}

function fillHop(element, hop, total) {
  const part = parts(element);
  const [wait, handling] = [hop.started - hop.queued, hop.ended - hop.started];
  say(part.instance, hop.instance);
  part.instance.title = hop.instance;
  bar(part["wait-bar"], hop.queued, wait, total);
  bar(part["hand-bar"], hop.started, handling, total, 3);
  bar(part["model-bar"], hop.ended - hop.model, hop.model, total);
  const times = { wait: seconds(wait), handling: seconds(handling), model: seconds(hop.model) };
  say(part.times, t(hop.model ? "hop_times_model" : "hop_times", times));
  part.spent.hidden = !hop.models;
  say(part.models, hop.models);
  say(part.tokens, hop.tokens_in || hop.tokens_out ? t("hop_tokens", { given: whole(hop.tokens_in), made: whole(hop.tokens_out) }) : "");
  say(part.cost, hop.cost ? money(hop.cost) : "");
}

function bar(rect, from, length, total, least = 0) {
  const scale = 1000 / Math.max(1, total);
  rect.setAttribute("x", Math.min(997, from * scale));
  rect.setAttribute("width", Math.max(least, length * scale));
}

// ── actions ──────────────────────────────────────────────────────────────────────────────────────

find("[data-delete]").addEventListener("click", (event) => sure(event.currentTarget, t("delete_sure"), () => tried(async () => {
  await ask("DELETE", `/conversations/${which}`);
  location.assign("/web/conversations");
})));
find("[data-stop]").addEventListener("click", () => tried(async () => {
  const { turns } = await ask("POST", `/web/conversations/${which}/stop`);
  if (!turns) notify(t("nothing_to_stop"));
}));
log.addEventListener("scroll", () => {
  keepUp.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}, { passive: true });
keepUp.addEventListener("change", toEnd);
log.addEventListener("click", (event) => {
  if (getSelection().isCollapsed) event.target.closest("[data-turn]")?.classList.toggle("whole");
});

/** The turn that the address names, shown in the timeline and in the log. */
function wanted() {
  const turn = /^#turn-([c\d.]+)$/.exec(location.hash)?.[1];
  for (const line of all("[data-turn]", lines)) line.classList.toggle("marked", line.dataset.turn === turn);
  const first = turn && find(`[data-turn="${turn}"]`, lines);
  if (!first) return;
  keepUp.checked = false;
  log.scrollTop = first.offsetTop - log.offsetTop;
}

addEventListener("hashchange", wanted);
toEnd();
wanted();
live(() => `/web/conversations/${which}/events?after=${after}`, {
  grown: grew,
  gone: () => {
    notify(t("deleted"));
    setTimeout(() => location.assign("/web/conversations"), 1200);
  },
});
