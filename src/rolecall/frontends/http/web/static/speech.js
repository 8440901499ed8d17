// Reading answers aloud and dictation, where the browser has them.

import { find, notify, t } from "./dom.js";

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;

/** Reads what an element shows aloud; again to stop. Code is left out. */
export function readAloud(element, button) {
  const speaking = button.getAttribute("aria-pressed") === "true";
  speechSynthesis.cancel();
  if (speaking) return;
  const shown = element.cloneNode(true);
  for (const code of shown.querySelectorAll(".code, math")) code.remove();
  const utterance = new SpeechSynthesisUtterance(shown.textContent);
  utterance.addEventListener("end", () => button.setAttribute("aria-pressed", "false"));
  utterance.addEventListener("error", () => button.setAttribute("aria-pressed", "false"));
  button.setAttribute("aria-pressed", "true");
  speechSynthesis.speak(utterance);
}

/** Makes the button write what is said into `box`; hidden where the browser cannot. */
export function dictation(box) {
  const button = find("[data-dictate]");
  if (!Recognition) return;
  button.hidden = false;
  let hearing;
  button.addEventListener("click", () => {
    if (hearing) return void hearing.stop();
    const before = box.value && !/\s$/.test(box.value) ? `${box.value} ` : box.value;
    hearing = new Recognition();
    hearing.lang = navigator.language;
    hearing.interimResults = true;
    hearing.continuous = true;
    hearing.addEventListener("result", ({ results }) => {
      box.value = before + [...results].map((result) => result[0].transcript).join("");
      box.dispatchEvent(new Event("input"));
    });
    hearing.addEventListener("error", ({ error }) => { if (error !== "aborted") notify(t("cannot_hear"), true); });
    hearing.addEventListener("end", () => {
      hearing = null;
      button.setAttribute("aria-pressed", "false");
      box.focus();
    });
    hearing.start();
    button.setAttribute("aria-pressed", "true");
  });
}
