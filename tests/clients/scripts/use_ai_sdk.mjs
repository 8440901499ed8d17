// Vercel's AI SDK, with its OpenAI provider (responses) and the one for compatible servers (chat completions).
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";
import { feature, KEY, URL } from "./report.mjs";

const options = { name: "rolecall", baseURL: `${URL}/v1`, apiKey: KEY };
const openai = createOpenAI(options);
const compatible = createOpenAICompatible({ ...options, supportsStructuredOutputs: true });
const schema = z.object({ city: z.string(), people: z.number().int() });
const { embedMany, generateObject, generateText, streamText, tool } = ai;
const weather = tool({
  description: "Tell the weather", inputSchema: z.object({ city: z.string() }), execute: async ({ city }) => `sun in ${city}`,
});
const stopWhen = (ai.isStepCount ?? ai.stepCountIs)(3);

for (const [prefix, model] of [["", compatible("auto")], ["responses: ", openai("auto")]]) {
  await feature(`${prefix}chat`, async () => (await generateText({ model, prompt: "Hello" })).text === "You said Hello");
  await feature(`${prefix}stream`, async () => {
    let said = "";
    for await (const piece of streamText({ model, prompt: "Hello" }).textStream) said += piece;
    return said === "You said Hello";
  });
  await feature(`${prefix}tools`, async () => {
    const found = await generateText({ model, prompt: "What is the weather?", tools: { weather }, stopWhen });
    return found.text.includes("sun in Rome");
  });
  await feature(`${prefix}structured output`, async () => (await generateObject({ model, schema, prompt: "Hello" })).object.people === 3);
}
await feature("embeddings", async () => {
  const found = await embedMany({ model: compatible.textEmbeddingModel("auto"), values: ["a", "b"] });
  return found.embeddings.length === 2;
});
