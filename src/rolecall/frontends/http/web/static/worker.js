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
    const version = new URL(request.url).pathname.split("/")[2];
    for (const old of await cache.keys()) {
      const path = new URL(old.url).pathname;
      if (path.startsWith("/static/") && path.split("/")[2] !== version) await cache.delete(old);
    }
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
