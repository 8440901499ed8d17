"""A front end for any chat system that speaks webhooks.

Messages come in as ``POST /messages {"chat": "42", "id": "m-7", "text": "Hello"}`` and answers go out as a POST of
``{"chat": "42", "id": "…", "text": "…"}`` to WEBHOOK_CALLBACK. Put this file beside config.py and list the class there:

    from webhook_frontend import WebhookFrontEnd
    config = Config(roles=(…), frontends=(WebhookFrontEnd,))
"""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rolecall.bus.outbox import OutboxEntry
from rolecall.frontends.front import Front


class _Server(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # the process's signals are Rolecall's
        return nullcontext()


class WebhookFrontEnd:
    """Receives messages by webhook and delivers answers by webhook."""

    name = "webhook"

    def __init__(self, front: Front) -> None:
        self.front = front
        self.callback = os.environ["WEBHOOK_CALLBACK"]
        self.port = int(os.environ.get("WEBHOOK_PORT", "10008"))
        app = Starlette(routes=[Route("/messages", self.receive, methods=["POST"])])
        self.server = _Server(uvicorn.Config(app, log_config=None, lifespan="off"))

    async def run(self) -> None:
        """Serve until cancelled."""
        with socket.create_server(("127.0.0.1", self.port)) as listener:
            await self.server.serve([listener])

    async def receive(self, request: Request) -> JSONResponse:
        """Hand a message over and return at once: 202 for an accepted one, 200 with a reply for a command such as
        /stop, 429 for a refused one, 400 for anything else."""
        try:
            message = await request.json()
            chat, text, key = (str(message[field]) for field in ("chat", "text", "id"))
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "expected JSON with chat, id and text"}, 400)
        # The message's own ID as idempotency key: a webhook that is sent twice is answered once.
        received = await self.front.receive(f"{self.name}:{chat}", text, idempotency=key)
        if received.refused:
            return JSONResponse({"error": received.reply}, 429)
        if not received.turn:
            return JSONResponse({"text": received.reply})
        return JSONResponse({"turn": received.short_id}, 202)

    async def deliver(self, entry: OutboxEntry) -> None:
        """Post an answer. The entry's ID lets the other side drop a repeat. While the other side is unreachable the
        answer waits (OSError); any other failure is tried five times."""
        chat = entry.conversation.partition(":")[2]
        text = (entry.payload or {}).get("text", "")
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
                reply = await client.post(self.callback, json={"chat": chat, "id": entry.id, "text": text})
        except httpx.TransportError as error:
            raise OSError(f"{self.callback} cannot be reached: {error}") from error
        reply.raise_for_status()

    async def drain(self) -> None:
        """Take no more messages."""
        self.server.should_exit = True
