// A conversation that somebody shared, to read.

import { ask, copyText, find, make, t, tried } from "./dom.js";
import { show } from "./markdown.js";

const page = find("[data-shared]");
const thread = find("[data-thread]");

const found = await tried(() => ask("GET", `/web/shared/${page.dataset.shared}/thread`));
if (found?.cut) thread.append(make("p", { class: "faint" }, t("shared_cut", { count: found.exchanges.length })));
for (const one of found?.exchanges ?? []) {
  if (one.said) thread.append(make("div", { class: "said", dir: "auto" }, one.said));
  if (!one.answer) continue;
  const body = make("div", { class: "body prose" });
  thread.append(make("article", { class: `answer ${one.state === "failed" ? "failed" : ""}` }, body));
  show(body, one.answer, one.plain || one.state === "failed");
}
thread.addEventListener("click", (event) => {
  const target = event.target.closest("[data-copy]");
  if (target) copyText(target, find("code", target.closest(".code").lastElementChild).textContent);
});
