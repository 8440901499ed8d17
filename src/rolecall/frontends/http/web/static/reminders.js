// Reminders on the chat page: under the reply to /reminders, a button deletes each.

import { ask, make, t, tried } from "./dom.js";

const COMMAND = "/reminders";

/** Shows the reply of a command in the conversation `name`. */
export async function settleCommand(answer, name, text, task) {
  answer.settle(task.state, task.text);
  if (text.trim() !== COMMAND) return;
  const { reminders } = await ask("GET", `/chat/reminders?conversation_id=${encodeURIComponent(name)}`);
  answer.foot.append(...reminders.map(({ id }, place) => {
    const button = make("button", { type: "button", class: "plain" }, t("delete_reminder", { number: place + 1 }));
    button.addEventListener("click", () => tried(() => remove(answer, name, id)));
    return button;
  }));
}

async function remove(answer, name, id) {
  await ask("DELETE", `/chat/reminders/${id}?conversation_id=${encodeURIComponent(name)}`);
  await settleCommand(answer, name, COMMAND, await ask("POST", "/chat/async", { text: COMMAND, conversation_id: name }));
}
