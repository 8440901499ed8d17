// BullMQ. 100 jobs at a time in one worker per queue; sends with addBulk; finished jobs are removed. Speaks as links.py says.
import { createRequire } from "node:module";
import readline from "node:readline";

const require = createRequire(process.cwd() + "/");
const { Queue, Worker } = require("bullmq");
const [, , what, url, countText] = process.argv;
const [PASSES, COUNT, OTHER] = [40, Number(countText), { a: "b", b: "a" }];
const { hostname, port } = new URL(url);
const connection = { host: hostname, port: Number(port) };
const keep = { removeOnComplete: true, removeOnFail: true };
const queues = Object.fromEntries(["a", "b", "answers"].map((name) => [name, new Queue(name, { connection })]));
const message = (number, left = PASSES, call = "") => ({
  id: number, conversation: `bench:${number}`, payload: { text: "x".repeat(800) }, created: Date.now() / 1000, left, call,
});
const serve = (name, handle) =>
  new Worker(name, handle, { connection: { ...connection, maxRetriesPerRequest: null }, concurrency: 100 }).waitUntilReady();

const waiting = new Map();
const calls = async (times) => {
  const took = [];
  for (let n = 0; n < times; n++) {
    const [began, call] = [performance.now(), `${process.pid}-${n}-${Date.now()}`];
    const answer = new Promise((resolve) => waiting.set(call, resolve));
    await queues.a.add("m", message(n, 1, call), keep);
    await answer;
    took.push(performance.now() - began);
  }
  return took;
};

if (what === "work") {
  let ended = 0;
  for (const link of ["a", "b"]) {
    await serve(link, async ({ data }) => {
      if (data.left) await queues[OTHER[link]].add("m", { ...data, left: data.left - 1 }, keep);
      else if (data.call) await queues.answers.add("m", data, keep);
      else if (++ended % COUNT === 0) console.log("done");
    });
  }
} else {
  await serve("answers", async ({ data }) => waiting.get(data.call)?.());
}
console.log("ready");
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, times] = line.split(" ");
  if (command === "send") {
    await queues.a.addBulk(Array.from({ length: COUNT }, (_, n) => ({ name: "m", data: message(n), opts: keep })));
    continue;
  }
  console.log(JSON.stringify(await calls(Number(times))));
}
process.exit(0);
