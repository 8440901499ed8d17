// API keys, members of the bot, and invitations.

import { ago, ask, copyText, find, keep, notify, parts, say, sure, t, tried, whole } from "./dom.js";

let spent = {};

async function load() {
  const found = await tried(() => ask("GET", "/web/people/data"));
  if (!found) return;
  spent = found.spent;
  keep(find("[data-keys-list]"), found.keys, find("[data-key-row]"), (row) => row.id, fillKey);
  keep(find("[data-members-list]"), found.members, find("[data-member-row]"), (row) => row.user, fillMember);
  find("[data-no-keys]").hidden = found.keys.length > 0;
  find("[data-keys-list]").closest(".table-wrap").hidden = !found.keys.length;
  find("[data-no-members]").hidden = found.members.length > 0;
  find("[data-members-list]").closest(".table-wrap").hidden = !found.members.length;
}

const tokens = (user) => whole(spent[user]?.tokens ?? 0);

function fillKey(element, row, fresh) {
  const part = parts(element);
  say(part.name, row.name);
  say(part.id, row.id);
  say(part.rights, t(row.admin ? "operator" : "user"));
  say(part.tokens, tokens(`http:${row.id}`));
  ago(part.made, row.made);
  if (!fresh) return;
  find("[data-revoke]", element).addEventListener("click", (event) => sure(event.currentTarget, t("revoke_sure"), () => tried(async () => {
    await ask("DELETE", `/web/people/keys/${row.id}`);
    notify(t("revoked", row));
    await load();
  })));
}

function fillMember(element, row, fresh) {
  const part = parts(element);
  say(part.name, row.name || row.user);
  say(part.id, row.user);
  say(part.tokens, tokens(`telegram:${row.user}`));
  ago(part.since, row.since);
  const rank = find("[data-rank]", element);
  rank.value = rank.known = row.rank;
  if (!fresh) return;
  rank.addEventListener("change", () => tried(async () => {
    try {
      await ask("POST", `/web/people/members/${row.user}`, { rank: rank.value });
      rank.known = rank.value;
      notify(t("rank_changed", { name: row.name || row.user, rank: rank.selectedOptions[0].textContent }));
    } finally {
      rank.value = rank.known;
    }
  }));
}

find("[data-new-key]").addEventListener("submit", (event) => {
  event.preventDefault();
  const { name, admin } = event.target.elements;
  tried(async () => {
    const { secret } = await ask("POST", "/web/people/keys", { name: name.value, admin: admin.checked });
    say(find("[data-secret-words]"), t("key_made", { name: name.value }));
    say(find("[data-secret-text]"), secret);
    find("[data-secret]").hidden = false;
    event.target.reset();
    await load();
  });
});
find("[data-invite]").addEventListener("submit", (event) => {
  event.preventDefault();
  tried(async () => {
    const { code } = await ask("POST", "/web/people/invitations", { rank: event.target.elements.rank.value });
    say(find("[data-code-text]"), `/start ${code}`);
    find("[data-code]").hidden = false;
  });
});
find("[data-copy-secret]").addEventListener("click", (event) => copyText(event.currentTarget, find("[data-secret-text]").textContent));
find("[data-copy-code]").addEventListener("click", (event) => copyText(event.currentTarget, find("[data-code-text]").textContent));
load();
