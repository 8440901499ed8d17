"""A server on loopback that tells which models it has, in the way of any provider."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def answering(answers: dict[str, Any], status: int = 200) -> Iterator[str]:
    """The address of a server that answers on each path in ``answers`` with its value as JSON and ``status``, and with
    404 on others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            body = json.dumps(answers.get(path, {"error": {"message": "no such path"}})).encode()
            self.send_response(status if path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="lists models")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def openai_list(*names: str) -> dict[str, Any]:
    """What OpenAI's protocol answers for ``names`` on /v1/models."""
    data = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in names]
    return {"/v1/models": {"object": "list", "data": data}}
