// Exchanges an API key for a login.

import { ask, find, storage } from "./dom.js";

const form = find("[data-login]");

if (!location.search) storage?.clear(); // somebody logged out: the next one finds no draft

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = find("[data-problem]");
  const button = find("button", form);
  button.disabled = true;
  problem.textContent = "";
  try {
    await ask("POST", "/login", { key: form.elements.key.value.trim() });
    location.assign(form.dataset.next + location.hash);
  } catch (error) {
    problem.textContent = error.message;
    form.elements.key.select();
  } finally {
    button.disabled = false;
  }
});
