"""An answer that a client of OpenAI's API waits for, or follows as it is made."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, ValidationError

from rolecall.background import cancel_and_wait
from rolecall.bus.envelope import CUT_MARK
from rolecall.bus.events import AnswerText, Event
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.body import Upload
from rolecall.frontends.http.intake import ChatRequest, fitted, headers_of, submit
from rolecall.frontends.http.problems import NO_RETRY, Problem, text
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.sse import Streaming
from rolecall.frontends.http.task import (
    NoResult,
    Task,
    TaskSnapshot,
    accepted_task,
    cancel_task,
    ended_task,
    follow_task,
    wait_for,
)


@dataclass
class PendingAnswer:
    """The answer to a message that was admitted. ``headers`` name its turn; ``ended`` says whether that has ended."""

    received: Received
    snapshot: TaskSnapshot
    headers: Mapping[str, str]
    ended: bool = False

    def task_after(self, event: Event) -> Task:
        """The task after the last ``event``; a command executed at once has no payload."""
        return self.snapshot.ref.ended_task(event.payload) if event.payload else self.snapshot.task

    async def events(self, services: Services) -> AsyncGenerator[Event]:
        """The events of the turn; a command executed at once has only a final one."""
        if not self.received.turn:
            yield Event("final", "", "", self.received.reply)
            return
        async with aclosing(follow_task(services, self.snapshot.ref, self.received.before)) as events:
            async for event in events:
                self.ended = self.ended or event.last
                yield event

    async def answer(self, services: Services, request: Request) -> Task:
        """Wait for the answer. Raises what ``answers`` raises."""
        return (await answers(services, request, [self]))[0]

    async def _task(self, services: Services) -> Task:
        task = self.snapshot.task
        return task if task.ended else await ended_task(services, self.snapshot.ref, self.received.before)


async def answers(services: Services, request: Request, pending: Sequence[PendingAnswer]) -> list[Task]:
    """Wait for all answers. Raises Problem if one of the turns failed or was cancelled, and when the process ends."""
    found: list[Task] | NoResult = [one.snapshot.task for one in pending]
    if not all(one.snapshot.task.ended for one in pending):
        found = await wait_for(services, request, _all_tasks(services, pending))
    if not isinstance(found, list):
        headers = {**pending[0].headers, "Retry-After": "1"}
        raise Problem(503, text("server_stopping"), "server_stopping", headers=headers)
    for one, task in zip(pending, found, strict=True):
        one.ended = True
        if task.state != "done":
            status = 409 if task.state == "cancelled" else 502
            raise Problem(status, reason_of(task), task.state, headers={**one.headers, **NO_RETRY})
    return found


async def _all_tasks(services: Services, pending: Sequence[PendingAnswer]) -> list[Task]:
    return list(await asyncio.gather(*(one._task(services) for one in pending)))


async def merged(sources: Sequence[AsyncGenerator[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    """The events of all ``sources`` as they come, each with the number of its source. Raises what a source raises."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as events:
            async for event in events:
                yield 0, event
        return
    came: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

    async def pump(index: int) -> None:
        try:
            async with aclosing(sources[index]) as events:
                async for event in events:
                    came.put_nowait((index, event))
        finally:
            came.put_nowait((index, None))

    pumps = [asyncio.create_task(pump(index), name="http choice") for index in range(len(sources))]
    try:
        for _ in pumps:
            while (item := await came.get())[1] is not None:
                yield item[0], item[1]
        await asyncio.gather(*pumps)
    finally:
        await cancel_and_wait(*pumps)


@asynccontextmanager
async def admitted(
    services: Services,
    who: Principal,
    request: ChatRequest,
    key: str | None,
    uploads: Mapping[str, Upload],
    *,
    kept: bool,
) -> AsyncIterator[PendingAnswer]:
    """Submit ``request``. Unless the answer is ``kept`` for somebody who comes back, leaving the block before it has
    ended cancels the turn, as its model is better used for others. Raises Problem."""
    request, cut = fitted(services, request)
    received = await submit(services, who, request, key, uploads)
    headers = {**headers_of(received), **({"X-History-Cut": str(cut)} if cut else {})}
    snapshot = await accepted_task(services.bus, received)
    if snapshot.task.id is None:  # a command executed at once: clients tell answers apart by their ids
        snapshot = replace(snapshot, task=snapshot.task.model_copy(update={"id": secrets.token_hex(12)}))
    pending = PendingAnswer(received, snapshot, headers)
    try:
        yield pending
    finally:
        if not (pending.ended or kept or services.stopping.is_set()) and received.turn:
            with suppress(ServerError):
                await cancel_task(services, pending.snapshot.ref)


@dataclass
class SentText:
    """The text that a client was sent. It can only grow, so an answer that is restarted with other words ends the
    stream."""

    answer: AnswerText = field(default_factory=AnswerText)
    text: str = ""

    def add(self, event: Event) -> str:
        """Apply ``event`` and return the text to send."""
        self.answer.apply(event)
        new = AnswerText(self.text).rest(self.answer.text) or ""
        self.text += new
        return new

    def restarted(self, event: Event) -> bool:
        """Whether the answer, as far as it is known after ``event``, differs from what was sent."""
        known = self.text if event.kind == "final" else self.text[: len(self.answer.text)]
        if event.cut and known.startswith(self.answer.text.removesuffix(CUT_MARK)):
            return False  # the whole answer was sent, and is too long to be stored
        return not self.answer.text.startswith(known)


def reason_of(task: Task) -> str:
    """Why there is no answer, for the user."""
    return task.error.text if task.error else text("answer_stopped")


class _StreamFlag(BaseModel):
    stream: bool | None = False


async def _asks_for_stream(request: Request) -> bool:
    if request.method == "GET":
        return request.query_params.get("stream", "").lower() in ("true", "1")
    try:
        return bool(_StreamFlag.model_validate_json(await request.body()).stream)
    except ValidationError:  # refused by the handler, which says what is wrong
        return False


def either(stream: Callable[..., Any]) -> type[APIRoute]:
    """The class of a route that is handled by ``stream`` when the request asks for a stream. FastAPI streams only from
    a route of its own, so such a route has two handlers."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            whole = super().get_route_handler()
            streaming = APIRoute(
                self.path, stream, methods=self.methods, response_class=EventSourceResponse, dependencies=[Streaming]
            ).get_route_handler()

            async def handle(request: Request) -> Response:
                return await (streaming if await _asks_for_stream(request) else whole)(request)

            return handle

    return Route
