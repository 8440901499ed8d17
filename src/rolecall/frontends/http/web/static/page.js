// On every page: theme, health, relative times, logging out.

import { ago, all, ask, find, many, notify, t, tried } from "./dom.js";

const PULSE_MS = 5000;

let checking;

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
    return show(health, "bad", t(error.status === 503 ? "bus_unreachable" : "server_unreachable"));
  }
  if (pulse.missing.length) show(health, "warn", t("roles_missing", { roles: pulse.missing.join(", ") }));
  else show(health, "good", pulse.instances === null ? t("ready") : t("ready_with", { instances: many(pulse.instances, "instance", "instances_lower") }));
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

const help = find("[data-help]");

function key(event) {
  const typing = event.target.closest?.("input, textarea, select");
  const empty = event.target.matches?.("[data-message]") && !event.target.value;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?" && (!typing || empty) && help && !help.open) {
    event.preventDefault();
    help.showModal();
    return;
  }
  if (event.key !== "/" || typing || find("dialog[open]")) return;
  const field = find("[data-message]") ?? find("input[type=search]");
  if (!field) return;
  event.preventDefault();
  field.focus();
}

/** Registers the service worker, by the only address that the policy of this page allows for scripts from text. */
function work() {
  const address = window.trustedTypes?.createPolicy("worker", { createScriptURL: () => "/worker.js" }).createScriptURL("") ?? "/worker.js";
  navigator.serviceWorker?.register(address).catch(() => {});
}

find(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a phone the pages are more than fit
find("[data-theme-switch]")?.addEventListener("click", switchTheme);
find("[data-log-out]")?.addEventListener("click", () => tried(async () => {
  await ask("POST", "/logout");
  location.assign("/web/login");
}));
addEventListener("keydown", key);
find("[data-help-open]")?.addEventListener("click", () => help.showModal());
addEventListener("load", () => setTimeout(work, 1000)); // after what the page itself loads
addEventListener("offline", () => notify(t("offline"), true));
document.addEventListener("visibilitychange", feel);
document.addEventListener("lost", () => {
  clearTimeout(checking);
  checking = setTimeout(feel, 100);
});
setInterval(feel, PULSE_MS);
setInterval(pass, 5000);
feel();
pass();
addEventListener("load", () => performance.mark("ready"));
