// What a script reports: a line of JSON for each feature that it tried.
export const URL = process.env.ROLECALL_URL;
export const KEY = "none-is-needed";

export async function feature(name, run) {
  let told;
  try {
    const found = await run();
    told = { feature: name, works: Boolean(found), note: found ? "" : `returned ${JSON.stringify(found)}` };
  } catch (error) {
    told = { feature: name, works: false, note: `${error.name}: ${error.message}`.slice(0, 300) };
  }
  console.log(`\n${JSON.stringify(told)}`);
}
