// What is happening now: figures, plots, roles, instances, models, processes.

import { all, ask, duration, find, keep, many, make, money, parts, say, seconds, t, tried, whole } from "./dom.js";
import { live } from "./live.js";
import { plot, steps } from "./plot.js";

const MINUTE = 60_000;
const DAY_MS = 24 * 60 * MINUTE;
const LONG = new URLSearchParams(location.search).get("span") === "24h";
const SPAN_MS = LONG ? DAY_MS : 15 * MINUTE;
const BAR_MS = LONG ? 30 * MINUTE : MINUTE;
const SPARK_MS = 15 * MINUTE;
const PERCENTILES = [0.5, 0.95, 0.99];
const QUARTER = 15 * MINUTE;
const MOST = 40;

let samples = [];
let minutes = [];
let bounds = [];
let counts = {};
const draw = {
  waiting: plot(find('[data-plot="waiting"]'), "steps", (value) => t("plot_waiting_value", { value })),
  answered: plot(find('[data-plot="answered"]'), "bars", (value) => t("plot_answered_value", { value })),
  busy: plot(find('[data-plot="busy"]'), "steps", (value) => t("plot_busy_value", { value })),
  latency: plot(find('[data-plot="latency"]'), "lines", (value, point) => (value == null ? t("no_data")
    : t("plot_latency_value", { half: seconds(value * 1000), high: seconds(point.high * 1000) }))),
};

// ── plots ──────────────────────────────────────────────────────────────────────────────────────

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const waiting = (sample) => Math.max(0, sum(Object.values(sample.queues)) - sample.busy);

function plots(now) {
  const to = Math.max(now, samples.at(-1)?.ms ?? 0);
  const range = { from: to - SPAN_MS, to };
  const all = LONG ? [...minutes, ...samples.filter((sample) => sample.ms > (minutes.at(-1)?.ms ?? 0))] : samples;
  const seen = all.filter((sample) => sample.ms >= range.from);
  draw.waiting(course(seen, waiting), range);
  draw.busy(course(seen, (sample) => sample.busy), { ...range, cap: seen.at(-1)?.instances ?? 0 });
  draw.answered(perMinute(seen, range), { ...range, span: BAR_MS });
  draw.latency(latencies(to), { from: to - DAY_MS, to });
}

/** The values of `seen`; over a day the mean of every ten minutes. */
function course(seen, value) {
  if (!LONG) return seen.map((sample) => ({ at: sample.ms, value: value(sample) }));
  const found = new Map();
  for (const sample of seen) {
    const at = Math.floor(sample.ms / (10 * MINUTE)) * 10 * MINUTE;
    const { total, count } = found.get(at) ?? { total: 0, count: 0 };
    found.set(at, { total: total + value(sample), count: count + 1 });
  }
  return [...found].map(([at, { total, count }]) => ({ at, value: Math.round((10 * total) / count) / 10 }));
}

/** The duration in seconds that a share of the turns in `counts` took at most, between two bounds as if evenly spread. */
function percentile(found, share) {
  const total = sum(found);
  if (!total) return null;
  let below = 0;
  for (const [place, count] of found.entries()) {
    if (below + count >= share * total && count) {
      const low = place ? bounds[place - 1] : 0;
      const high = bounds[place] ?? low;
      return low + (high - low) * ((share * total - below) / count);
    }
    below += count;
  }
  return bounds.at(-1);
}

/** How many turns more each duration has in `last` than in `first`; all of them if the counters began anew. */
const grown = (first, last) => last.map((count, place) => Math.max(0, count - (first[place] ?? 0)));

/** The percentiles of each quarter of an hour. */
function latencies(to) {
  const known = minutes.filter((sample) => sample.durations?.length && sample.ms > to - DAY_MS);
  const found = [];
  let first = known[0];
  for (const sample of known) {
    if (Math.floor(sample.ms / QUARTER) === Math.floor(first.ms / QUARTER)) continue;
    const more = grown(first.durations, sample.durations);
    found.push({ at: sample.ms, value: percentile(more, 0.5), high: percentile(more, 0.95) });
    first = sample;
  }
  return found;
}

/** What the turns of the last 24 hours took. */
function percentiles() {
  const known = minutes.filter((sample) => sample.durations?.length);
  const more = known.length > 1 ? grown(known[0].durations, known.at(-1).durations) : [];
  PERCENTILES.forEach((share) => {
    const value = percentile(more, share);
    say(find(`[data-figure="p${share * 100}"]`), value == null ? "–" : seconds(value * 1000));
  });
}

/** How many turns ended in each bar's time, from a counter that starts at 0 each day. */
function perMinute(seen, range) {
  const bars = new Map();
  for (let at = Math.ceil(range.from / BAR_MS) * BAR_MS; at <= range.to; at += BAR_MS) bars.set(at, 0);
  seen.forEach((sample, place) => {
    if (!place) return;
    const more = sample.turns - seen[place - 1].turns;
    const bar = Math.floor(sample.ms / BAR_MS) * BAR_MS;
    if (bars.has(bar)) bars.set(bar, bars.get(bar) + (more < 0 ? sample.turns : more));
  });
  return [...bars].map(([at, value]) => ({ at, value }));
}

function spark(role, to) {
  const seen = samples.filter((sample) => sample.ms >= to - SPARK_MS);
  const most = Math.max(4, ...seen.map((sample) => sample.queues[role] ?? 0));
  return steps(seen.map((sample) => [120 - ((to - sample.ms) / SPARK_MS) * 120, 22 - ((sample.queues[role] ?? 0) / most) * 20]));
}

// ── figures and tables ─────────────────────────────────────────────────────────────────────────

const key = (name) => (row) => row[name];

function figures({ stats, agents }) {
  const instances = sum(Object.values(stats.instances).map(key("instances")));
  const { turns, tokens, feedback } = stats;
  const shown = {
    busy: sum(Object.values(stats.instances).map(key("busy"))),
    instances: t("of", { count: instances }),
    processes: t("in_processes", { processes: many(agents.processes.length, "process", "processes") }),
    in_flight: whole(turns.in_flight),
    deferred: [stats.turns.waiting ? t("in_mailboxes", { count: stats.turns.waiting }) : "", stats.deferred ? t("deferred", { count: stats.deferred }) : "", stats.suspended.turns ? t("suspended", { count: stats.suspended.turns, time: duration(stats.suspended.oldest_seconds) }) : ""].filter(Boolean).join(" · "),
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
  const rows = Object.entries(stats.instances).map(([role, row]) => ({ role, ...row, queue: Math.max(0, (stats.queues[role] ?? 0) - row.busy) }));
  rows.sort((a, b) => b.busy + b.queue - a.busy - a.queue);
  keep(find("[data-roles]"), rows, find("[data-role-row]"), key("role"), (element, row) => {
    const part = parts(element);
    say(part.role, row.role);
    slots(part.slots, row);
    part.spark.setAttribute("d", spark(row.role, ms));
    for (const name of ["queue", "handled", "errors"]) say(part[name], whole(row[name]));
    say(part.used, `${Math.round(row.utilisation * 100)} %`);
    scales(element, part, row.role);
  });
}

/** The count of a role, with buttons to change it. */
function scales(element, part, role) {
  const { count, configured } = counts[role] ?? {};
  element.classList.toggle("paused", count === 0);
  part.scale.hidden = count === undefined;
  say(part.count, count ?? "");
  part.count.title = t("configured", { count: configured });
  part.pause.textContent = t(count === 0 ? "resume" : "pause");
  part.less.disabled = !count;
  for (const [name, words] of [["less", "fewer_of"], ["more", "more_of"], ["pause", count === 0 ? "resume_of" : "pause_of"]]) {
    part[name].setAttribute("aria-label", t(words, { role }));
  }
}

find("[data-roles]").addEventListener("click", (event) => {
  const button = event.target.closest("[data-scale]");
  if (!button) return;
  const role = button.closest("[data-key]").dataset.key;
  const { count, configured } = counts[role];
  const wanted = { less: count - 1, more: count + 1, pause: count === 0 ? Math.max(1, configured) : 0 }[button.dataset.scale];
  tried(async () => {
    counts = await ask("POST", `/web/roles/${role}`, { count: Math.max(0, wanted) });
    scales(button.closest("tr"), parts(button.closest("tr")), role);
  });
});

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
    const count = (number) => (row.counted ? whole(number) : "–");
    element.title = row.counted ? "" : t("not_counted");
    for (const name of ["in_flight", "waiting", "calls", "failed"]) say(part[name], count(row[name]));
    say(part.average, row.calls ? seconds(row.average_ms) : "–");
    say(part.tokens, row.counted ? `${whole(row.in)} → ${whole(row.out)}` : "–");
    say(part.cost, row.counted ? money(row.cost) : "–");
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
    part.process.href = `/web/log?process=${encodeURIComponent(row.process)}`;
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
  minutes: (data) => {
    ({ samples: minutes, bounds } = data);
    percentiles();
  },
  now: (data) => {
    if (data.sample && data.sample.ms > (samples.at(-1)?.ms ?? 0)) samples = [...samples.slice(-400), data.sample];
    counts = data.counts;
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
