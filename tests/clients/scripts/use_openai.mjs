// OpenAI's own client for Node.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { feature, KEY, URL } from "./report.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY });
const model = "auto";
const messages = [{ role: "user", content: "Hello" }];
const Place = z.object({ city: z.string(), people: z.number().int() });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

await feature("models", async () => (await client.models.list()).data[0].id === "auto");
await feature("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages });
  return answer.choices[0].message.content === "You said Hello" && answer._request_id;
});
await feature("stream", async () => {
  let said = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    said += chunk.choices[0]?.delta?.content ?? "";
  }
  return said === "You said Hello";
});
await feature("tools", async () => {
  const weather = { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => `sun in ${city}` };
  const runner = client.chat.completions.runTools({
    model, messages: [{ role: "user", content: "What is the weather?" }], tools: [{ type: "function", function: weather }],
  });
  return (await runner.finalContent()) === "The tool says sun in Rome";
});
await feature("structured output", async () => {
  const answer = await client.chat.completions.parse({ model, messages, response_format: zodResponseFormat(Place, "place") });
  return answer.choices[0].message.parsed.people === 3;
});
await feature("responses", async () => {
  const first = await client.responses.create({ model, input: "Hello" });
  const second = await client.responses.create({ model, input: "Hello again", previous_response_id: first.id });
  return second.output_text === "You said Hello again";
});
await feature("responses: stream", async () => {
  const stream = client.responses.stream({ model, input: "Hello" });
  return (await stream.finalResponse()).output_text === "You said Hello";
});
await feature("responses: structured output", async () => {
  const answer = await client.responses.parse({ model, input: "Hello", text: { format: zodTextFormat(Place, "place") } });
  return answer.output_parsed.people === 3;
});
await feature("embeddings", async () => (await client.embeddings.create({ model, input: ["a", "b"] })).data.length === 2);
await feature("files", async () => {
  const file = await client.files.create({ file: new File(["Hello"], "notes.txt"), purpose: "user_data" });
  return (await client.files.delete(file.id)).deleted;
});
