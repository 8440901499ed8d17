// The lines that the processes log, as they log them.

import { all, clock, copy, find, parts, say, t } from "./dom.js";
import { live } from "./live.js";

const MOST_LINES = 2000;
const TONES = { info: "", warning: "warn", error: "bad" };
const MONTH_DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

const form = find("[data-filters]");
const log = find("[data-log]");
const lines = find("[data-lines]");
const keepUp = find("[data-keep-up]");
let fresh = true;

const query = () => new URLSearchParams([...new FormData(form)].filter(([name, value]) => value && !(name === "level" && value === "info")));

/** A link to the lines of `process` alone. */
function only(process) {
  const given = query();
  given.set("process", process);
  return `?${given}`;
}

function add(line) {
  const element = copy(find("[data-line]"));
  const part = parts(element);
  const today = new Date(line.ms).toDateString() === new Date().toDateString();
  element.className = TONES[line.level];
  say(part.at, today ? clock(line.ms) : `${MONTH_DAY.format(line.ms)} ${clock(line.ms).slice(0, 8)}`);
  part.at.title = new Date(line.ms).toLocaleString();
  part.at.dateTime = new Date(line.ms).toISOString();
  say(part.level, t(`level_${line.level}`));
  say(part.by, line.who || line.process.split("~")[0]);
  part.by.title = line.process;
  part.by.href = only(line.process);
  say(part.text, line.text);
  lines.append(element);
  while (lines.childElementCount > MOST_LINES) lines.firstElementChild.remove();
}

/** Has every process that said something among the choices. */
function offer(names) {
  const choice = form.elements.process;
  const known = new Set(all("option", choice).map((option) => option.value));
  for (const name of new Set(names)) if (!known.has(name)) choice.append(new Option(name, name));
}

function told(data) {
  if (fresh) lines.replaceChildren();
  fresh = false;
  data.lines.forEach(add);
  offer(data.lines.map((line) => line.process));
  const none = lines.childElementCount === 0;
  log.hidden = none;
  find("[data-none]").hidden = !none;
  say(find("[data-none-title]"), t(query().size ? "no_matches" : "no_lines"));
  say(find("[data-none-help]"), t(query().size ? "no_matches_help" : "no_lines_help"));
  toEnd();
}

const toEnd = () => { if (keepUp.checked) log.scrollTop = log.scrollHeight; };

const reopen = live(() => {
  fresh = true;
  return `/web/log/events?${query()}`;
}, { lines: told });

form.addEventListener("change", (event) => {
  if (event.target === keepUp) return toEnd();
  const given = query();
  history.replaceState(null, "", given.size ? `?${given}` : location.pathname);
  return reopen();
});
log.addEventListener("scroll", () => {
  keepUp.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}, { passive: true });
log.addEventListener("click", (event) => {
  if (getSelection().isCollapsed) event.target.closest("li")?.classList.toggle("whole");
});
