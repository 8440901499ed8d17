// What is happening now: figures, plots, roles, instances, models, processes.

import { all, duration, find, keep, many, make, parts, say, seconds, t, whole } from "./dom.js";
import { live } from "./live.js";
import { plot, steps } from "./plot.js";

const SPAN_MS = 15 * 60_000;
const MINUTE = 60_000;
const MOST = 40;

let samples = [];
const draw = {
  waiting: plot(find('[data-plot="waiting"]'), "steps", (value) => t("plot_waiting_value", { value })),
  answered: plot(find('[data-plot="answered"]'), "bars", (value) => t("plot_answered_value", { value })),
  busy: plot(find('[data-plot="busy"]'), "steps", (value) => t("plot_busy_value", { value })),
};

// ── plots ──────────────────────────────────────────────────────────────────────────────────────

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const waiting = (sample) => Math.max(0, sum(Object.values(sample.queues)) - sample.busy);

function plots(now) {
  const to = Math.max(now, samples.at(-1)?.ms ?? 0);
  const range = { from: to - SPAN_MS, to };
  const seen = samples.filter((sample) => sample.ms >= range.from);
  draw.waiting(seen.map((sample) => ({ at: sample.ms, value: waiting(sample) })), range);
  draw.busy(seen.map((sample) => ({ at: sample.ms, value: sample.busy })), { ...range, cap: seen.at(-1)?.instances ?? 0 });
  draw.answered(perMinute(seen, range), { ...range, span: MINUTE });
}

/** How many turns ended in each minute, from a counter that starts at 0 each day. */
function perMinute(seen, range) {
  const minutes = new Map();
  for (let at = Math.ceil(range.from / MINUTE) * MINUTE; at <= range.to; at += MINUTE) minutes.set(at, 0);
  seen.forEach((sample, place) => {
    if (!place) return;
    const more = sample.turns - seen[place - 1].turns;
    const minute = Math.floor(sample.ms / MINUTE) * MINUTE;
    if (minutes.has(minute)) minutes.set(minute, minutes.get(minute) + (more < 0 ? sample.turns : more));
  });
  return [...minutes].map(([at, value]) => ({ at, value }));
}

function spark(role, to) {
  const seen = samples.filter((sample) => sample.ms >= to - SPAN_MS);
  const most = Math.max(4, ...seen.map((sample) => sample.queues[role] ?? 0));
  return steps(seen.map((sample) => [120 - ((to - sample.ms) / SPAN_MS) * 120, 22 - ((sample.queues[role] ?? 0) / most) * 20]));
}

// ── figures and tables ─────────────────────────────────────────────────────────────────────────

const money = (amount) => (amount ? `$${amount.toFixed(amount < 1 ? 4 : 2)}` : "$0");
const key = (name) => (row) => row[name];

function figures({ stats, agents }) {
  const instances = sum(Object.values(stats.instances).map(key("instances")));
  const { turns, tokens, feedback } = stats;
  const shown = {
    busy: sum(Object.values(stats.instances).map(key("busy"))),
    instances: t("of", { count: instances }),
    processes: t("in_processes", { processes: many(agents.processes.length, "process", "processes") }),
    in_flight: whole(turns.in_flight),
    deferred: stats.deferred ? t("deferred", { count: stats.deferred }) : "",
    turns: whole(turns.today),
    errors: turns.errors ? many(turns.errors, "error") : turns.today ? t("no_errors") : "",
    average: turns.today ? seconds(turns.average_ms) : "–",
    users: stats.users_now ? t("users_active", { users: many(stats.users_now, "user") }) : "",
    tokens_out: whole(tokens.out),
    tokens_in: t("tokens_in", { count: whole(tokens.in) }),
    cost: money(stats.cost),
    feedback: feedback.up + feedback.down ? t("votes", feedback) : "",
  };
  for (const [name, value] of Object.entries(shown)) for (const place of all(`[data-figure="${name}"]`)) say(place, value);
}

function roles({ stats, ms }) {
  const rows = Object.entries(stats.instances).map(([role, row]) => ({ role, queue: stats.queues[role] ?? 0, ...row }));
  keep(find("[data-roles]"), rows, find("[data-role-row]"), key("role"), (element, row) => {
    const part = parts(element);
    say(part.role, row.role);
    slots(part.slots, row);
    part.spark.setAttribute("d", spark(row.role, ms));
    for (const name of ["queue", "handled", "errors"]) say(part[name], whole(row[name]));
    say(part.used, `${Math.round(row.utilisation * 100)} %`);
  });
}

function slots(place, { busy, instances }) {
  place.title = t("busy_of", { busy, instances });
  const count = Math.min(instances, MOST);
  while (place.childElementCount > count) place.lastElementChild.remove();
  while (place.childElementCount < count) place.append(make("i"));
  [...place.children].forEach((slot, number) => slot.classList.toggle("busy", number < busy));
  if (!instances) place.replaceChildren(make("span", { class: "pill warn" }, t("none")));
  else find("span", place)?.remove();
}

function instances({ agents }) {
  const found = agents.processes.flatMap((process) => process.instances ?? []);
  found.sort((a, b) => Number(b.busy ?? false) - Number(a.busy ?? false) || (b.seconds ?? 0) - (a.seconds ?? 0) || a.id.localeCompare(b.id));
  keep(find("[data-instances]"), found.slice(0, MOST), find("[data-instance-row]"), key("id"), (element, row) => {
    const part = parts(element);
    say(part.id, row.id);
    part.id.title = row.id;
    part.dot.className = row.busy ? "dot runs" : "dot";
    say(part.does, row.busy ? `${row.conversation}/${row.turn}` : "");
    if (row.busy) part.does.href = `/web/conversations/${row.place}`;
    part.does.hidden = !row.busy;
    part.idle.hidden = Boolean(row.busy);
    say(part.seconds, row.busy ? seconds((row.seconds ?? 0) * 1000) : "");
    say(part.handled, whole(row.handled ?? 0));
    say(part.errors, whole(row.errors ?? 0));
  });
  const more = find("[data-more]");
  more.hidden = found.length <= MOST;
  say(more, t("and_more", { count: found.length - MOST }));
  find("[data-nothing]").hidden = found.length > 0;
  find("[data-instances-table]").hidden = found.length === 0;
}

function models({ stats }) {
  const rows = Object.entries(stats.models).map(([model, row]) => ({ model, ...row }));
  find("[data-models-card]").hidden = rows.length === 0;
  keep(find("[data-models]"), rows, find("[data-model-row]"), key("model"), (element, row) => {
    const part = parts(element);
    say(part.model, row.model);
    say(part.state, row.state);
    part.state.className = `pill ${row.state === "ready" ? "good" : row.state.startsWith("away") ? "bad" : "warn"}`;
    for (const name of ["in_flight", "waiting", "calls", "failed"]) say(part[name], whole(row[name]));
    say(part.average, row.calls ? seconds(row.average_ms) : "–");
    say(part.tokens, `${whole(row.in)} → ${whole(row.out)}`);
    say(part.cost, money(row.cost));
  });
}

/** Model servers, on this machine and others. The card is hidden if there are none. */
function servers({ servers: rows }) {
  find("[data-servers-card]").hidden = rows.length === 0;
  keep(find("[data-servers]"), rows, find("[data-server-row]"), key("id"), (element, row) => {
    const part = parts(element);
    say(part.model, row.model);
    say(part.state, row.pinned ? t("pinned", row) : row.state);
    part.state.className = `pill ${{ ready: "good", starting: "runs" }[row.state] ?? "warn"}`;
    part.state.title = row.why ?? "";
    say(part.host, row.host || t("external"));
    for (const name of ["slots", "in_flight"]) say(part[name], row[name]);
    say(part.memory, row.ram ? `${whole(row.ram)} MB` : "–");
    say(part.up, duration(row.age / 1000));
  });
}

function processes({ agents }) {
  keep(find("[data-processes]"), agents.processes, find("[data-process-row]"), key("process"), (element, row) => {
    const part = parts(element);
    const [open, allowed] = [row.connections ?? 0, row.max_connections ?? 0];
    say(part.process, row.process);
    part.process.title = row.process;
    say(part.kind, row.kind ?? "worker");
    part.scribe.hidden = !row.scribe;
    say(part.up, duration(row.uptime ?? 0));
    say(part.instances, row.instances?.length ?? 0);
    part.meter.setAttribute("width", allowed ? (100 * open) / allowed : 0);
    say(part.pool, `${open} ${t("of", { count: allowed })}`);
  });
}

let late;

live(() => "/web/now/events", {
  series: (data) => { samples = data.samples; },
  now: (data) => {
    if (data.sample && data.sample.ms > (samples.at(-1)?.ms ?? 0)) samples = [...samples.slice(-400), data.sample];
    plots(data.ms);
    figures(data);
    roles(data);
    instances(data);
    models(data);
    servers(data);
    processes(data);
    const stamp = find("[data-stamp]");
    say(stamp, t("live"));
    clearTimeout(late);
    late = setTimeout(() => say(stamp, t("stale")), 8000);
  },
});
