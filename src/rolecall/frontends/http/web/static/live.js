// Server-sent events that are only open while the page is visible.

import { ask } from "./dom.js";

/**
 * Follows the events at `address()`, if there is one; `handlers`, by event name, get their data and id. The stream is
 * closed while the page is hidden: a browser has six connections for all pages of a server. Returns a function that
 * reopens it at once.
 */
export function live(address, handlers) {
  let source;
  let wait = 1000;
  let again;

  function open() {
    source?.close();
    clearTimeout(again);
    const where = address();
    if (!where) return;
    source = new EventSource(where);
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        wait = 1000;
        handle(JSON.parse(event.data), event.lastEventId);
      });
    }
    source.addEventListener("error", () => {
      document.dispatchEvent(new Event("lost"));
      if (source.readyState !== EventSource.CLOSED) return;
      ask("GET", "/web/pulse").catch(() => {}); // an expired login leads to the login page
      again = setTimeout(open, wait);
      wait = Math.min(wait * 2, 15_000);
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      clearTimeout(again);
    } else open();
  });
  addEventListener("pagehide", () => source?.close());
  if (!document.hidden) open();
  return open;
}
