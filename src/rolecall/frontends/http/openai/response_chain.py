"""Responses that are kept, and the conversations that grow from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from rolecall.bus.bus import Bus
from rolecall.bus.client_request import (
    MAX_MESSAGES,
    ClientMessage,
    StoredResponse,
    load_responses,
    store_response,
)
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.openai.response_object import (
    PREFIX,
    answer_message,
    part_of,
    referenced,
    response_object,
)
from rolecall.frontends.http.openai.response_request import InputItem, joined
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.task import Task, TaskRef, find_task

MAX_CHAIN = MAX_MESSAGES // 2


@dataclass(frozen=True)
class KeptResponse:
    """What is stored of a response, and its task as it stands."""

    ref: TaskRef
    stored: StoredResponse
    task: Task

    def object(self) -> dict[str, object]:
        """The response as its client knows it."""
        shown = dict(self.stored.shown)
        return response_object(self.task, shown.pop("created_at", 0.0), shown)


async def find_response(bus: Bus, response_id: str, who: Principal) -> KeptResponse:
    """A response that was kept. Raises Problem (404) if there is none of that id for this key, any more or ever."""
    try:
        if not response_id.startswith(PREFIX):
            raise Problem(404, "")
        ref = TaskRef.parse(response_id.removeprefix(PREFIX), who)
        [stored] = await load_responses(bus, ref.conversation, [ref.turn])
        task = await _task_of(bus, ref, stored)
    except (Problem, ValueError):
        raise Problem(404, text("no_response", id=repr(response_id[:200])), "not_found") from None
    return KeptResponse(ref, stored, task)


async def keep_answer(bus: Bus, ref: TaskRef, task: Task) -> None:
    """Store the answer of an ended ``task`` with its response, if that is kept: the turn's own result expires sooner.
    Idempotent."""
    for stored in await load_responses(bus, ref.conversation, [ref.turn]):
        if task.ended and stored.answer is None:
            await store_response(bus, ref.conversation, replace(stored, answer=task.model_dump()))


async def history_before(bus: Bus, previous: KeptResponse) -> list[ClientMessage]:
    """The messages of the conversation up to and with the answer of ``previous``. Ancestors that were deleted or have
    expired are left out. Raises Problem (400) while ``previous`` goes on."""
    if not previous.task.ended:
        raise Problem(400, text("response_unfinished"), "invalid_request", param="previous_response_id")
    history: list[ClientMessage] = []
    for stored in await load_responses(bus, previous.ref.conversation, previous.stored.chain):
        answer = [answer_message(Task.model_validate(stored.answer))] if stored.answer else []
        history += [*as_urls(stored.messages), *answer]
    return [*history, *as_urls(previous.stored.messages), answer_message(previous.task)]


def chain_after(previous: KeptResponse | None) -> tuple[str, ...]:
    """The turns that a response goes on from."""
    return (*previous.stored.chain, previous.ref.turn)[-MAX_CHAIN:] if previous else ()


async def resolved(bus: Bus, who: Principal, items: Sequence[InputItem]) -> list[ClientMessage]:
    """The messages of ``items``; references to earlier output are looked up. Raises Problem."""
    found: list[ClientMessage] = []
    for number, item in enumerate(items):
        param = f"input.{number}"
        if item.type != "item_reference":
            found.append(item.client_message(param))
        elif not (item.id or "").startswith("rs_"):  # what a model thought is not kept
            found.append(await _referenced(bus, who, item.id or "", param))
    return joined(found)


async def _referenced(bus: Bus, who: Principal, item_id: str, param: str) -> ClientMessage:
    message = None
    if named := referenced(item_id):
        previous = await find_response(bus, PREFIX + named[0], who)
        message = part_of(answer_message(previous.task), named[1])
    if message is None:
        raise Problem(404, text("no_item", id=repr(item_id[:200])), "not_found", param=param)
    return message


async def _task_of(bus: Bus, ref: TaskRef, stored: StoredResponse) -> Task:
    if stored.answer is not None:
        return Task.model_validate(stored.answer)
    task = (await find_task(bus, ref)).task
    await keep_answer(bus, ref, task)
    return task


def as_urls(messages: Sequence[ClientMessage]) -> list[ClientMessage]:
    return [replace(one, images=tuple(f"blob:{image}" for image in one.images)) for one in messages]
