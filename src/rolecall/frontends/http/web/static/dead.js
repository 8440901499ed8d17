// Dead letters: replay and drop.

import { ask, find, make, say, sure, t, tried } from "./dom.js";

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

letters?.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.disabled = true;
  await tried(() => act(event.target.closest(".letter"), button));
  button.disabled = false;
});

document.addEventListener("pulse", ({ detail }) => {
  find("[data-newer]").hidden = detail.dead <= Number(find("[data-total]").textContent);
});
