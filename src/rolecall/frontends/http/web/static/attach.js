// Pictures and files that go with the next message: by button, drop and paste.

import { all, find, make, notify, t } from "./dom.js";

const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const TEXTS = /\.(txt|md|markdown|csv|tsv|json|ya?ml|toml|ini|cfg|log|xml|html?|css|m?[jt]sx?|py|rb|go|rs|java|kt|c|h|cc|cpp|cs|php|sh|sql|lua|r|swift|diff|patch|tex)$/i;
const OFFICE = "application/vnd.openxmlformats-officedocument.";
const DOCUMENTS = { pdf: "application/pdf", docx: `${OFFICE}wordprocessingml.document`, xlsx: `${OFFICE}spreadsheetml.sheet`, pptx: `${OFFICE}presentationml.presentation` };
const MOST = { images: 16, files: 8 };
const MOST_FILE = 11 * 1024 * 1024;

const megabytes = Number(find("[data-chat]").dataset.blobMegabytes);
const list = find("[data-attached]");
const box = find("[data-box]");
const input = find("[data-files]");

/** What is attached: {kind, name, type, url}. */
let attached = [];

/** What is attached, as the body of a message has it; nothing is attached afterwards. */
export function taken() {
  const found = attached;
  attached = [];
  draw();
  return found;
}

/** Attaches again what `taken` returned. */
export function giveBack(found) {
  attached = [...found, ...attached];
  draw();
}

export const anything = () => attached.length > 0;

export const bodyOf = (found) => ({
  images: found.filter((one) => one.kind === "images").map((one) => one.url),
  files: found.filter((one) => one.kind === "files").map(({ name, type, url }) => ({ name, type, data: `data:${type};base64${url.slice(url.indexOf(","))}` })),
});

/** Pictures and names of files, as a list item each. */
export const shownAs = (found) => found.map((one) => (one.kind === "images"
  ? make("img", { src: one.url, alt: one.name || t("picture") }) : make("span", { class: "file" }, one.name)));

function draw() {
  list.hidden = !attached.length;
  list.replaceChildren(...attached.map((one) => make("li", {}, ...shownAs([one]),
    make("button", { type: "button", class: "plain", "data-detach": true, "aria-label": t("remove_file", { name: one.name }), title: t("remove_file", { name: one.name }) }, "×"))));
}

function kindOf(file) {
  if (PICTURES.includes(file.type)) return ["images", file.type];
  const document = DOCUMENTS[file.name.split(".").pop().toLowerCase()];
  if (document || Object.values(DOCUMENTS).includes(file.type)) return ["files", document ?? file.type];
  if (file.type.startsWith("audio/")) return ["files", file.type];
  if (file.type.startsWith("text/") || TEXTS.test(file.name)) return ["files", file.type.startsWith("text/") ? file.type : "text/plain"];
  return ["", ""];
}

const read = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => done(reader.result));
  reader.addEventListener("error", () => failed(reader.error));
  reader.readAsDataURL(file);
});

async function attach(files) {
  for (const file of files) {
    const [kind, type] = kindOf(file);
    const most = Math.min(kind === "images" || Object.values(DOCUMENTS).includes(type) ? Infinity : MOST_FILE, megabytes * 1024 * 1024);
    if (!kind) notify(t("file_unknown", { name: file.name }), true);
    else if (file.size > most) notify(t("file_too_large", { name: file.name, limit: Math.floor(most / 1024 / 1024) }), true);
    else if (attached.filter((one) => one.kind === kind).length >= MOST[kind]) notify(t("too_many_files"), true);
    else attached.push({ kind, name: file.name, type, url: await read(file) });
  }
  draw();
}

/** Listens to the button, to drops on `area` and to pastes into `text`. */
export function listen(area, text) {
  find("[data-attach]").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    attach([...input.files]);
    input.value = "";
    text.focus();
  });
  list.addEventListener("click", (event) => {
    const item = event.target.closest("[data-detach]")?.parentElement;
    if (!item) return;
    attached.splice(all("li", list).indexOf(item), 1);
    draw();
    text.focus();
  });
  text.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    attach(files);
  });
  let depth = 0;
  const over = (more) => {
    depth = Math.max(0, depth + more);
    box.classList.toggle("dropping", depth > 0);
  };
  area.addEventListener("dragenter", (event) => { if (event.dataTransfer.types.includes("Files")) over(1); });
  area.addEventListener("dragleave", (event) => { if (event.dataTransfer.types.includes("Files")) over(-1); });
  area.addEventListener("dragover", (event) => event.preventDefault());
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    attach([...event.dataTransfer.files]);
    text.focus();
  });
}
