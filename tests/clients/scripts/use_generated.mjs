// A client that is generated from the OpenAPI document, compiled by TypeScript as strictly as it can.
import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { feature, URL as SERVER } from "./report.mjs";

process.chdir(dirname(fileURLToPath(import.meta.url)));

const PROGRAM = `
import { createClient } from "./generated/client";
import { chatChat, chatStream, completionsComplete, embeddingsEmbed, uploadedFilesUpload } from "./generated";
import type { ProblemDetails, Task } from "./generated";

const client = createClient({ baseUrl: ${JSON.stringify(SERVER)} });

export async function chat(): Promise<boolean> {
  const { data } = await chatChat({ client, body: { text: "Hello" } });
  const task: Task | undefined = data;
  const { error } = await chatChat({ client, body: { text: "Hello", role: "nobody" } });
  const problem = error as ProblemDetails | undefined;
  return task?.text === "You said Hello" && problem?.code === "unknown_role";
}

export async function stream(): Promise<boolean> {
  const { stream } = await chatStream({ client, body: { text: "Hello" } });
  const kinds: string[] = [];
  for await (const event of stream) kinds.push(typeof event);
  return kinds.length > 2;
}

export async function completions(): Promise<boolean> {
  const messages = [{ role: "user" as const, content: "Hello" }];
  const { data } = await completionsComplete({ client, body: { messages, n: 2 } });
  const { error } = await embeddingsEmbed({ client, body: { input: "Hello", model: "nothing" } });
  return (data as { choices: unknown[] }).choices.length === 2 && error?.error.code === "model_not_found";
}

export async function files(): Promise<boolean> {
  const file = new File(["Hello"], "notes.txt", { type: "text/plain" });
  const { data } = await uploadedFilesUpload({ client, body: { file, purpose: "user_data" } });
  return typeof data?.["id"] === "string";
}
`;
const STRICT = ["--strict", "--noUncheckedIndexedAccess", "--noPropertyAccessFromIndexSignature"];
const TARGET = ["--target", "es2022", "--lib", "es2023,dom,dom.iterable", "--module", "esnext", "--moduleResolution", "bundler"];

const run = (...command) => execFileSync("npx", ["--no-install", ...command], { encoding: "utf8", stdio: "pipe" });
const failed = (error) => new Error(String(error.stdout || error.stderr || error).slice(-300));
for (const made of ["generated", "built"]) rmSync(made, { recursive: true, force: true });

await feature("generated without a warning", async () => {
  writeFileSync("openapi.json", await (await fetch(`${SERVER}/openapi.json`)).text());
  const said = run("openapi-ts", "--input", "openapi.json", "--output", "generated", "--no-log-file");
  return !/warn/i.test(said);
});
await feature("compiles in strict mode", () => {
  writeFileSync("main.ts", PROGRAM);
  try {
    run("tsc", ...STRICT, ...TARGET, "--skipLibCheck", "--outDir", "built", "main.ts");
    run("esbuild", "built/main.js", "--bundle", "--format=esm", "--outfile=built/bundle.mjs", "--log-level=error");
  } catch (error) {
    throw failed(error);
  }
  return true;
});
const made = await import("./built/bundle.mjs").catch(() => ({}));
await feature("chat and its errors", () => made.chat());
await feature("stream", () => made.stream());
await feature("chat completions and their errors", () => made.completions());
await feature("files", () => made.files());
