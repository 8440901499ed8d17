// Tokens and cost by day, model and user.

import { ask, find, keep, make, many, money, parts, say, t, tried, whole } from "./dom.js";
import { stacked } from "./plot.js";

const MOST = 7; // names with a colour of their own

const form = find("[data-filters]");
const given = new URLSearchParams(location.search);
for (const [name, fallback] of [["what", "cost"], ["by", "models"], ["days", "14"]]) {
  const select = form.elements[name];
  select.value = given.get(name) ?? fallback;
  if (!select.value) select.value = fallback;
}
const draw = stacked(find("[data-days]"));

const shown = (what, value) => (what === "cost" ? money(value) : whole(value));

/** The sums of all days by name, the largest first. */
function sums(days, by) {
  const found = new Map();
  for (const day of days) for (const [name, row] of Object.entries(day[by])) {
    const sum = found.get(name) ?? { name, tokens: 0, cost: 0 };
    found.set(name, { name, tokens: sum.tokens + (row.tokens ?? 0), cost: sum.cost + (row.cost ?? 0) });
  }
  return [...found.values()];
}

async function load() {
  const [what, by, days] = ["what", "by", "days"].map((name) => form.elements[name].value);
  const found = await tried(() => ask("GET", `/web/usage/data?days=${days}`));
  if (!found) return;
  const names = sums(found, by).sort((a, b) => b[what] - a[what]);
  const total = names.reduce((sum, row) => sum + row[what], 0);
  const place = (name) => Math.min(MOST, names.findIndex((row) => row.name === name));
  say(find("[data-title]"), t(what === "cost" ? "cost_by_day" : "tokens_by_day"));
  say(find("[data-sum]"), t("in_all", { sum: shown(what, total), days: many(Number(days), "day", "days") }));
  draw(found.map((day) => ({
    label: `${day.day.slice(6)}.${day.day.slice(4, 6)}.`,
    parts: Object.entries(day[by]).map(([name, row]) => ({ name, place: place(name), value: row[what] ?? 0 })).sort((a, b) => a.place - b.place),
  })), (value) => shown(what, value));
  find("[data-legend]").replaceChildren(...names.slice(0, MOST).map((row, number) => make("li", {}, make("i", { class: `swatch hue-${number}` }), row.name)),
    ...(names.length > MOST ? [make("li", {}, make("i", { class: `swatch hue-${MOST}` }), t("others"))] : []));
  keep(find("[data-names]"), names, find("[data-name-row]"), (row) => row.name, (element, row) => {
    const part = parts(element);
    part.swatch.className = `swatch hue-${place(row.name)}`;
    say(part.name, row.name);
    say(part.tokens, whole(row.tokens));
    say(part.cost, money(row.cost));
    say(part.share, total ? `${Math.round((100 * row[what]) / total)} %` : "–");
  });
  find("[data-nothing]").hidden = names.length > 0;
  find("[data-names]").closest(".table-wrap").hidden = names.length === 0;
}

form.addEventListener("change", () => {
  history.replaceState(null, "", `?${new URLSearchParams(new FormData(form))}`);
  load();
});
form.addEventListener("submit", (event) => event.preventDefault());
load();
