// One answer in the thread: it follows the events of its task, and then shows how that ended.

import { all, ask, copy, find, make, many, parts, say, seconds, t } from "./dom.js";
import { show } from "./markdown.js";

export const ENDS = ["done", "failed", "cancelled"];

const scroll = find("[data-scroll]");
const thread = find("[data-thread]");
const template = find("[data-answer]");
const canSpeak = "speechSynthesis" in window;

const HIDDEN_MS = 10_000;

/** The unfinished tasks of the conversation shown, by id. */
export const running = new Map();
export const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
export const toEnd = () => { scroll.scrollTop = scroll.scrollHeight; };

/** Follows the oldest unfinished answer and the commands. The turns of a conversation end in order, and a browser has
 *  six connections for all pages of a server. */
function followNext() {
  const turns = [...running.values()].filter(({ turn }) => turn);
  const oldest = Math.min(...turns.map(({ turn }) => turn));
  for (const answer of running.values()) if (!answer.turn || answer.turn === oldest) answer.listen();
}

document.addEventListener("visibilitychange", () => { for (const answer of running.values()) answer.listenAgain(); });

export class Answer {
  /** Adds an empty answer to the thread. `question` is the message it answers, if there is one; `changed` is called when
   *  it begins or ends. */
  constructor(question = null, changed = () => {}) {
    this.element = copy(template);
    Object.assign(this, parts(this.element));
    Object.assign(this, { question, changed, characters: [], hops: [] });
    this.element.answer = this;
    thread.append(this.element);
  }

  get text() {
    return this.characters.join("");
  }

  /** Follows the task `id`, which waits behind `place` others; it was asked for at `at`, by the server's clock. */
  follow(id, place = 0, at = Date.now()) {
    this.id = id;
    this.turn = Number(id.split(".").at(-1)) || 0;
    this.began = Math.min(at, Date.now());
    this.element.classList.add("runs");
    running.set(id, this);
    this.ticking = setInterval(() => this.tick(), 1000);
    this.tick();
    if (place) this.wait({ place });
    followNext();
    this.changed();
  }

  /** Follows the events; while the page is hidden asks now and then instead, as a browser has six connections for all
   *  pages of a server. */
  listen() {
    if (this.source) return;
    if (document.hidden) return void this.listenLater();
    this.hops = []; // a new stream begins with the first of them
    this.source = new EventSource(`/web/chat/tasks/${this.id}/events`);
    for (const kind of ["queued", "started", "delta", "asked", "answered", ...ENDS]) {
      this.source.addEventListener(kind, (event) => this.hear(kind, JSON.parse(event.data), parseInt(event.lastEventId, 10)));
    }
    this.source.addEventListener("error", () => this.lost());
  }

  leave() {
    this.source?.close();
    clearTimeout(this.retry);
    clearInterval(this.ticking);
    running.delete(this.id);
  }

  hear(kind, data, ms) {
    if (ms) this.since ??= ms;
    if (ms && ENDS.includes(kind)) this.lasted = ms - this.since;
    if (kind === "delta") this.add(data.position, data.text);
    else if (kind === "started") this.start(data.role, data.instance, data.attempt);
    else if (kind === "queued") this.wait(data);
    else if (kind === "asked") this.ask(data);
    else if (kind === "answered") this.told(data.question, data.choice);
    else if (ENDS.includes(data.state)) this.end(data);
    else this.stand(data);
  }

  /** Shows the task as it is. */
  stand(task) {
    this.characters = [...task.text];
    if (task.role) this.start(task.role, task.role, 0, true);
    else if (task.place) this.wait(task);
    for (const question of task.questions ?? []) this.ask(question);
    this.draw();
  }

  /** Shows what an agent asks, with a button for each choice. */
  ask({ id, text, options, style }) {
    if (all(".question", this.asked).some((element) => element.dataset.question === id)) return;
    const follows = atEnd();
    const words = (option) => (style !== "confirm" ? option : t(option === "yes" ? "yes" : "no"));
    const buttons = options.map((option, choice) => make("button", { type: "button", "data-choice": choice, class: choice ? "" : "first" }, words(option)));
    this.asked.append(make("div", { class: "question", role: "group", "aria-label": text, "data-question": id },
      make("p", { dir: "auto" }, text), make("div", { class: "choices" }, ...buttons)));
    say(find("[data-spoken]"), text);
    if (follows) toEnd();
  }

  /** Shows the choice that was made; none if nobody chose in time. */
  told(id, choice) {
    const element = all(".question", this.asked).find((one) => one.dataset.question === id);
    if (!element) return;
    for (const button of all("button", element)) {
      const chosen = Number(button.dataset.choice) === choice;
      button.disabled = true;
      button.classList.toggle("chosen", chosen);
      if (chosen) button.setAttribute("aria-pressed", "true");
    }
  }

  /** Sends the choice of a button. */
  async choose(button) {
    const question = button.closest(".question").dataset.question;
    for (const other of all("button", button.parentElement)) other.disabled = true;
    try {
      await ask("POST", `/chat/task/${this.id}/answer`, { question, choice: Number(button.dataset.choice) });
      this.told(question, Number(button.dataset.choice));
    } catch (error) {
      for (const other of all("button", button.parentElement)) other.disabled = error.status === 409 || error.status === 404;
      throw error;
    }
  }

  wait({ place, reason }) {
    this.place = place;
    this.waits(Boolean(place));
    say(this.trail, place ? t("queued_behind", { count: place }) : reason ? t("waiting_because", { reason }) : t("queued"));
  }

  /** Whether its message can still be taken back alone. */
  waits(waiting) {
    const button = this.question && find("[data-act=cancel]", this.question);
    if (button) button.hidden = !waiting;
  }

  start(roleName, instance, attempt, known = false) {
    this.waits(false);
    if (!known) this.characters = [];
    if (this.hops.at(-1)?.role !== roleName) this.hops.push({ role: roleName, instance });
    this.hops.at(-1).instance = instance;
    this.walked(this.hops);
    this.trail.lastElementChild.classList.add("now");
    if (attempt > 1) this.trail.append(make("span", { class: "pill warn" }, t("attempt", { number: attempt })));
    if (!known) this.draw();
  }

  /** Shows the roles that worked on it. */
  walked(hops) {
    this.trail.replaceChildren(...hops.map((hop) => make("span", { class: "hop", title: hop.instance }, hop.role)));
  }

  add(position, text) {
    if (position < this.characters.length) this.characters.length = position;
    if (position > this.characters.length) return void this.lookAgain();
    this.characters.push(...text);
    this.draw();
  }

  /** Earlier events are no longer stored, but the task has their text. */
  lookAgain() {
    this.looking ??= ask("GET", `/chat/task/${this.id}`).then((task) => {
      this.looking = null;
      if (running.has(this.id) && !ENDS.includes(task.state)) this.stand(task);
    }, () => {});
  }

  /** Draws once per frame, however many events came. */
  draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      const follows = atEnd();
      show(this.body, this.text);
      if (follows) toEnd();
    });
  }

  tick() {
    say(this.foot, `${Math.round((Date.now() - this.began) / 1000)} s`);
  }

  lost() {
    document.dispatchEvent(new Event("lost"));
    if (this.source.readyState !== EventSource.CLOSED) return;
    this.source = null;
    this.look(); // the stream was refused
  }

  /** Shows the task as it is: how it ended, else it is followed again. */
  look() {
    ask("GET", `/chat/task/${this.id}`).then((task) => {
      if (!running.has(this.id)) return;
      this.hear(task.state, task);
      this.listenLater();
    }, (error) => {
      if (![404, 410].includes(error.status)) this.listenLater();
      else this.end({ state: "failed", text: "", error: { text: error.message }, usage: {} });
    });
  }

  listenLater() {
    if (!running.has(this.id)) return;
    clearTimeout(this.retry);
    this.retry = setTimeout(() => {
      this.retry = null;
      if (document.hidden) this.look();
      else this.listen();
    }, document.hidden ? HIDDEN_MS : 2000);
  }

  /** Called when the page becomes visible or hidden. */
  listenAgain() {
    if (!this.source && !this.retry) return; // not its turn
    this.source?.close();
    clearTimeout(this.retry);
    this.source = this.retry = null;
    this.listen();
  }

  end(task) {
    this.leave();
    this.waits(false);
    for (const button of all("button", this.asked)) button.disabled = true;
    this.element.classList.remove("runs");
    for (const hop of all(".now", this.trail)) hop.classList.remove("now");
    this.settle(task.state, task.state === "failed" ? task.error?.text ?? "" : task.text, {
      ms: this.lasted || (document.hidden ? 0 : Date.now() - this.began), model: task.model, tokens: task.usage?.tokens_out, cut: task.finish === "length", plain: task.plain,
    });
    if (task.state === "done") say(find("[data-spoken]"), task.text.slice(0, 600));
    for (const other of running.values()) if (other.turn > this.turn && other.place > 1) other.wait({ place: other.place - 1 });
    followNext();
    this.changed();
  }

  /** Shows the final state. */
  settle(state, text, { ms, model, tokens, cut, roles, plain } = {}) {
    const follows = atEnd();
    this.state = state;
    this.characters = [...(text || (state === "cancelled" ? this.characters : ""))];
    this.element.classList.toggle("failed", state === "failed");
    this.element.classList.toggle("stopped", state === "cancelled");
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = null;
    show(this.body, this.text, plain || state === "failed");
    if (roles) this.walked(roles.map((role) => ({ role, instance: role })));
    const facts = [
      state === "cancelled" ? t("stopped") : "", ms ? seconds(ms) : "", model, tokens ? many(tokens, "token") : "",
      cut ? t("cut_off") : "",
    ];
    this.foot.replaceChildren(...facts.filter(Boolean).map((word) => make("span", {}, word)));
    this.tools.hidden = false;
    const act = (name) => find(`[data-act=${name}]`, this.tools);
    act("copy").hidden = !this.characters.length;
    act("listen").hidden = !canSpeak || !this.characters.length || state === "failed";
    act("again").hidden = !this.question;
    if (follows) toEnd();
  }
}
