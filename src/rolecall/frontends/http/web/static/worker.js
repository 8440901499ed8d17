// The service worker: the page's files are kept, so that it opens fast and says so when the server is away.

const KEPT = "rolecall";
const OFFLINE = "/web/offline";

addEventListener("install", (event) => {
  event.waitUntil(caches.open(KEPT).then((cache) => cache.add(OFFLINE)).then(() => self.skipWaiting()));
});

addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

/** A file of the page: its address changes with its content, so what is kept is right. */
async function file(request) {
  const cache = await caches.open(KEPT);
  const kept = await cache.match(request);
  if (kept) return kept;
  const answer = await fetch(request);
  if (answer.ok) {
    const place = request.url.slice(0, request.url.lastIndexOf("/"));
    const old = (await cache.keys()).filter(({ url }) => url.includes("/static/") && !url.startsWith(place));
    for (const one of old) await cache.delete(one);
    if (old.length) await cache.add(OFFLINE).catch(() => {}); // it names the new files
    await cache.put(request, answer.clone());
  }
  return answer;
}

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  if (new URL(request.url).pathname.startsWith("/static/")) event.respondWith(file(request));
  else if (request.mode === "navigate") event.respondWith(fetch(request).catch(() => caches.match(OFFLINE)));
});
