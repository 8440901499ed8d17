// Bundles the page's libraries: `make page-libraries`. The versions are those of package-lock.json, with their hashes.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const into = new URL("../../src/rolecall/frontends/http/web/static/lib/", import.meta.url);
const languages = ["bash", "c", "cpp", "csharp", "css", "diff", "dockerfile", "go", "ini", "java", "javascript", "json", "kotlin",
  "lua", "makefile", "markdown", "php", "python", "ruby", "rust", "shell", "sql", "typescript", "xml", "yaml"];
const entries = {
  "markdown-it.js": `
    export { default as MarkdownIt } from "markdown-it";
    export { default as footnote } from "markdown-it-footnote";
    export { tex } from "@mdit/plugin-tex";`,
  "highlight.js": `
    import { createLowlight } from "lowlight";
    ${languages.map((name) => `import ${name} from "highlight.js/lib/languages/${name}";`).join("\n")}
    export const lowlight = createLowlight({ ${languages.join(", ")} });`,
  "math.js": `export { default as temml } from "temml";`,
};

const bundled = new Set();
const files = {};
for (const [name, contents] of Object.entries(entries)) {
  const { outputFiles, metafile } = await build({
    stdin: { contents, resolveDir: import.meta.dirname }, bundle: true, format: "esm", minify: true, target: "es2022",
    alias: { entities: "entities/lib/decode.js" }, // without the encoder, which markdown-it does not use
    legalComments: "none", metafile: true, write: false,
  });
  const [{ contents: code }] = outputFiles;
  writeFileSync(new URL(name, into), code);
  files[name] = createHash("sha256").update(code).digest("hex");
  for (const input of Object.keys(metafile.inputs)) {
    const found = input.match(/^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/);
    if (found) bundled.add(found[0].slice(found[0].indexOf("node_modules/")));
  }
}

const lock = JSON.parse(readFileSync(new URL("package-lock.json", import.meta.url))).packages;
const packages = {};
const licences = [];
for (const place of [...bundled].sort()) {
  const { version, license, integrity } = lock[place];
  const name = place.slice(place.lastIndexOf("node_modules/") + "node_modules/".length);
  packages[name] = { version, license, integrity };
  const folder = new URL(`${place}/`, import.meta.url);
  const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
  licences.push(`${name} ${version} (${license})\n\n${file ? readFileSync(new URL(file, folder), "utf8").trim() : ""}\n`);
}
writeFileSync(new URL("licences.txt", into), licences.join(`\n${"-".repeat(80)}\n\n`));
writeFileSync(new URL("contents.json", into), `${JSON.stringify({ files, packages }, null, 2)}\n`);
