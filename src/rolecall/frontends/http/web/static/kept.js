// The list of stored conversations: search, and a menu to rename, pin, share, export and delete.

import { ago, all, ask, copyText, find, keep, make, notify, parts, say, sure, t, tried, walk } from "./dom.js";

const list = find("[data-kept-list]");
const search = find("[data-kept-search]");
const template = find("[data-kept-row]");
const menu = find("[data-menu]");
const renaming = find("[data-rename]");
const sharing = find("[data-share]");
const reminding = find("[data-reminders]");

let rows = [];
let chosen;
let shown = "";
/** Called with the name of a conversation that was deleted. */
let deleted = () => {};

const path = (name) => `/web/chat/${encodeURIComponent(name)}`;

/** Lists them; the transcript of the newest may not be written yet. */
export async function remember(name = shown, said = "") {
  shown = name;
  const wanted = search.value.trim();
  const found = await ask("GET", `/web/chat?search=${encodeURIComponent(wanted)}`).catch(() => null);
  if (!found || wanted !== search.value.trim()) return;
  rows = found.conversations;
  if (name && !wanted && !rows.some((row) => row.name === name)) {
    const place = rows.filter((row) => row.pinned).length;
    rows.splice(place, 0, { name, title: said || name, last: Date.now(), pinned: false, shared: "" });
  }
  keep(list, rows, template, (row) => row.name, fill);
  if (!rows.length) list.replaceChildren(make("li", { class: "none" }, t(wanted ? "no_matches" : "no_chats")));
  else find(".none", list)?.remove();
  mark(name);
}

function fill(element, row) {
  const { title, when, pin } = parts(element);
  find("a", element).href = `#${row.name}`;
  say(title, row.title || row.name);
  title.title = row.title || row.name;
  pin.hidden = !row.pinned;
  ago(when, row.last);
}

/** Marks the conversation that is open. */
export function mark(name) {
  shown = name;
  for (const element of all("[data-key]", list)) {
    const here = element.dataset.key === name;
    element.classList.toggle("open", here);
    find("a", element).toggleAttribute("aria-current", here);
  }
}

// ── menu ───────────────────────────────────────────────────────────────────────────────────────

function openMenu(button) {
  const name = button.closest("[data-key]").dataset.key;
  chosen = rows.find((row) => row.name === name);
  say(find("[data-do=pin]", menu), t(chosen.pinned ? "unpin" : "pin"));
  menu.showPopover();
  const { left, bottom, top } = button.getBoundingClientRect();
  const height = menu.offsetHeight;
  menu.style.left = `${Math.min(left, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${bottom + height + 8 > innerHeight ? Math.max(8, top - height) : bottom + 4}px`;
  find("button", menu).focus();
}

async function change(settings) {
  const found = await ask("POST", path(chosen.name), settings);
  Object.assign(chosen, found);
  await remember();
  return found;
}

const actions = {
  rename() {
    renaming.querySelector("input").value = chosen.title;
    renaming.returnValue = "";
    renaming.showModal();
    renaming.querySelector("input").select();
  },
  pin: () => change({ pinned: !chosen.pinned }),
  async share() {
    const found = await change({ shared: true });
    find("input", sharing).value = location.origin + found.shared;
    sharing.returnValue = "";
    sharing.showModal();
    find("input", sharing).select();
  },
  async reminders() {
    await listReminders();
    reminding.showModal();
  },
  md: () => save("md"),
  json: () => save("json"),
};

async function listReminders() {
  const named = `conversation_id=${encodeURIComponent(chosen.name)}`;
  const found = await ask("GET", `/chat/reminders?${named}`);
  keep(find("[data-reminder-list]"), found.reminders, find("[data-reminder-row]"), (row) => row.id, (element, row, fresh) => {
    const { text, when, remove } = parts(element);
    say(text, row.text);
    say(when, row.when);
    remove.setAttribute("aria-label", t("remove_reminder", row));
    if (fresh) remove.addEventListener("click", () => tried(async () => {
      await ask("DELETE", `/chat/reminders/${row.id}?${named}`);
      await listReminders();
    }));
  });
  find("[data-no-reminders]").hidden = found.reminders.length > 0;
}

function save(form) {
  const link = make("a", { href: `/web/export/${form}/${encodeURIComponent(chosen.name)}`, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

menu.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  if (button.dataset.do === "delete") {
    sure(button, t("delete_sure"), () => tried(async () => {
      menu.hidePopover();
      await ask("DELETE", path(chosen.name));
      deleted(chosen.name);
      await remember(chosen.name === shown ? "" : shown);
      notify(t("deleted"));
    }));
    return;
  }
  menu.hidePopover();
  tried(() => actions[button.dataset.do]());
});
menu.addEventListener("keydown", (event) => {
  const buttons = all("button", menu);
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
});
renaming.addEventListener("close", () => {
  if (renaming.returnValue === "yes") tried(() => change({ title: find("input", renaming).value }));
});
sharing.addEventListener("close", () => {
  if (sharing.returnValue === "stop") tried(async () => {
    await change({ shared: false });
    notify(t("not_shared"));
  });
});
find("[data-copy-link]").addEventListener("click", (event) => copyText(event.currentTarget, find("input", sharing).value));

/** Begins: `gone` is called with the name of a conversation that was deleted. */
export function begin(gone) {
  deleted = gone;
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => remember(), 150);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") find("a", list)?.focus();
  });
  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-menu-for]");
    if (button) openMenu(button);
  });
  walk(list, () => all("a", list));
}
