// Server-sent events that stay up to date while somebody looks, and rest while nobody does.

import { ask } from "./dom.js";

/**
 * Follows `address()`; `handlers` are by event name and get the data. While the page is hidden the stream is closed;
 * it is opened anew when it is seen again. Returns a function that opens it anew at once.
 */
export function live(address, handlers) {
  let source;
  let wait = 1000;
  let again;

  function open() {
    source?.close();
    clearTimeout(again);
    source = new EventSource(address());
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        wait = 1000;
        handle(JSON.parse(event.data), event.lastEventId);
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      ask("GET", "/web/pulse").catch(() => {}); // a login that is over leads to the login page
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
