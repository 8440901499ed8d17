// On every page: the theme, whether all is well, times that pass, leaving.

import { ago, all, ask, find, many, notify, tried } from "./dom.js";

const PULSE_MS = 10_000;

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `rolecall_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}

function show(health, tone, words) {
  find(".dot", health).className = `dot ${tone}`;
  find(".words", health).textContent = words;
  health.title = words;
}

async function feel() {
  const health = find("[data-health]");
  if (!health || document.hidden) return;
  let pulse;
  try {
    pulse = await ask("GET", "/web/pulse");
  } catch (error) {
    return show(health, "bad", error.status === 503 ? "The bus is away" : "The server is away");
  }
  if (pulse.missing.length) show(health, "warn", `No ${pulse.missing.join(", ")}`);
  else show(health, "good", pulse.instances === null ? "Ready" : `Ready, ${many(pulse.instances, "instance")}`);
  const dead = find("[data-dead]");
  if (dead && pulse.dead !== null) {
    dead.textContent = pulse.dead;
    dead.hidden = !pulse.dead;
  }
  document.dispatchEvent(new CustomEvent("pulse", { detail: pulse }));
}

function pass() {
  for (const time of all("time[data-ms]")) ago(time, Number(time.dataset.ms));
}

function slash(event) {
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = find("[data-message]") ?? find("input[type=search]");
  if (!field) return;
  event.preventDefault();
  field.focus();
}

find("[data-theme-switch]")?.addEventListener("click", switchTheme);
find("[data-log-out]")?.addEventListener("click", () => tried(async () => {
  await ask("POST", "/logout");
  location.assign("/web/login");
}));
addEventListener("keydown", slash);
addEventListener("offline", () => notify("This machine is offline.", true));
document.addEventListener("visibilitychange", feel);
setInterval(feel, PULSE_MS);
setInterval(pass, 5000);
feel();
pass();
