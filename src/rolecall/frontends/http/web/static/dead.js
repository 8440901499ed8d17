// Dead letters: replay and drop.

import { all, ask, find, make, notify, say, sure, t, tried } from "./dom.js";

const letters = find(".letters");

function over(letter, ...words) {
  find("[data-outcome]", letter).replaceChildren(...words);
  letter.classList.add("gone");
  for (const selector of ["[data-replay]", "[data-drop]"]) find(selector, letter).hidden = true;
  const total = find("[data-total]");
  say(total, Math.max(0, Number(total.textContent) - 1));
}

async function act(letter, button) {
  const path = `/dead/${encodeURIComponent(letter.dataset.letter)}`;
  if (button.matches("[data-replay]")) {
    const done = await ask("POST", `${path}/replay`);
    const link = make("a", { href: `/web/conversations/${encodeURIComponent(done.turn_id)}` }, t("turn_number", { turn: done.turn }));
    const [before, after] = t(done.place ? "replayed_waiting" : "replayed", { turn: "\n", place: done.place }).split("\n");
    over(letter, before, link, after);
  } else {
    await sure(button, t("drop_sure"), async () => {
      await ask("DELETE", path);
      over(letter, t("dropped"));
    });
  }
}

// ── many at once ───────────────────────────────────────────────────────────────────────────────

const chosen = () => all("[data-choose]:checked", letters).map((box) => box.closest(".letter").dataset.letter);

function choose() {
  const count = chosen().length;
  const total = find("[data-total]").textContent;
  say(find("[data-replay-many]"), count ? t("replay_some", { count }) : t("replay_all", { count: total }));
  say(find("[data-drop-many]"), count ? t("drop_some", { count }) : t("drop_all", { count: total }));
  say(find("[data-chosen]"), count ? t("chosen", { count }) : "");
}

async function many(name, button) {
  button.disabled = true;
  await tried(async () => {
    const { done, refused } = await ask("POST", "/web/dead", { act: name, search: find("[data-dead-page]").dataset.search, ids: chosen() });
    notify(t(name === "replay" ? "replayed_many" : "dropped_many", { done: done.length, refused: refused.length }), refused.length > 0);
    for (const letter of all(".letter", letters)) if (done.includes(letter.dataset.letter)) over(letter, t(name === "replay" ? "replayed_one" : "dropped"));
    const total = find("[data-total]");
    say(total, Math.max(0, Number(total.textContent) - done.filter((id) => !find(`[data-letter="${CSS.escape(id)}"]`)).length));
    for (const box of all("[data-choose]", letters)) box.checked = false;
    find("[data-all]").checked = false;
    choose();
  });
  button.disabled = false;
}

letters?.addEventListener("change", choose);
find("[data-all]")?.addEventListener("change", (event) => {
  for (const box of all(".letter:not(.gone) [data-choose]", letters)) box.checked = event.target.checked;
  choose();
});
find("[data-replay-many]")?.addEventListener("click", (event) => many("replay", event.currentTarget));
find("[data-drop-many]")?.addEventListener("click", (event) => sure(event.currentTarget, t("drop_sure"), () => many("drop", find("[data-drop-many]"))));

letters?.addEventListener("click", async (event) => {
  const button = event.target.closest(".letter button");
  if (!button) return;
  button.disabled = true;
  await tried(() => act(event.target.closest(".letter"), button));
  button.disabled = false;
});

document.addEventListener("pulse", ({ detail }) => {
  find("[data-newer]").hidden = find("[data-dead-page]").dataset.search || detail.dead <= Number(find("[data-total]").textContent);
});
