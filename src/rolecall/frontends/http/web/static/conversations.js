// The list of conversations, updated as it changes.

import { ago, all, find, keep, many, parts, say, t, walk, whole } from "./dom.js";
import { live } from "./live.js";

const form = find("[data-filters]");
const rows = find("[data-rows]");
const template = find("[data-row]");

function query(page) {
  const given = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) given.set(name, value);
  if (page > 1) given.set("page", page);
  return given;
}

const page = () => Number(new URLSearchParams(location.search).get("page") ?? 1);

function fill(element, row) {
  const part = parts(element);
  part.link.href = `/web/conversations/${row.name}`;
  part.dot.className = `dot ${row.running ? "runs" : row.errors ? "bad" : ""}`;
  part.dot.title = row.running ? t("turn_running") : "";
  say(part.title, row.title || row.id);
  say(part.id, row.title ? row.id : "");
  say(part.turns, many(row.turns, "turn"));
  say(part.errors, many(row.errors, "error"));
  part.errors.hidden = !row.errors;
  say(part.line, row.said);
  ago(part.when, row.last);
}

function draw(found) {
  keep(rows, found.conversations, template, (row) => row.name, fill);
  const none = found.conversations.length === 0;
  rows.hidden = none;
  find("[data-none]").hidden = !none;
  if (none && query(1).size) {
    say(find("[data-none-title]"), t("no_matches"));
    say(find("[data-none-help]"), t("no_matches_help"));
  }
  say(find("[data-total]"), whole(found.total));
  say(find("[data-where]"), found.pages > 1 ? t("page_of", found) : "");
  for (const [selector, other, there] of [
    ["[data-before]", found.page - 1, found.page > 1], ["[data-after]", found.page + 1, found.page < found.pages],
  ]) {
    const link = find(selector);
    link.hidden = !there;
    link.href = `?${query(other)}`;
  }
}

let waiting;
const reopen = live(() => `/web/conversations/events?${query(page())}`, { conversations: draw });

function changed() {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const given = query(1);
    history.replaceState(null, "", given.size ? `?${given}` : location.pathname);
    reopen();
  }, 200);
}

form.addEventListener("input", changed);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  changed();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && event.target.type === "search") {
    event.preventDefault();
    find("a", rows)?.focus();
  }
});
walk(rows, () => all("a", rows));
