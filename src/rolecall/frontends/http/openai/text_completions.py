"""Text completions, the predecessor of chat completions that some clients still ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import Depends, Request, Response
from fastapi.sse import ServerSentEvent
from pydantic import ConfigDict, Field

from rolecall.bus.client_request import ClientMessage
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.intake import ChatRequest, IdempotencyKey
from rolecall.frontends.http.openai.completion_request import CompletionFields, unsupported
from rolecall.frontends.http.openai.completions import (
    RESPONSES,
    ChatCompletion,
    admitted_choices,
    chunks,
    completed,
    finish_reason,
    stopping,
)
from rolecall.frontends.http.openai.model_list import model_names
from rolecall.frontends.http.openai.pending_answer import either
from rolecall.frontends.http.openai.request_fields import ModelNames
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.services import ServicesDep
from rolecall.frontends.http.sse import Events, streams
from rolecall.frontends.http.task import Task


class TextCompletionBody(CompletionFields):
    """A completion request. Unknown fields are ignored."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"model": "auto", "prompt": "Once upon a time"}]}
    )

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="a text, or several")
    echo: bool | None = False
    best_of: int | None = None
    suffix: str | None = None
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts. Raises Problem for tokens, and for none."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        found = [prompt for prompt in given if isinstance(prompt, str) and prompt.strip()]
        if not found or len(found) < len(given):
            raise Problem(400, text("bad_prompt"), "invalid_request", param="prompt")
        return found

    def requests(self, names: ModelNames, most: int) -> tuple[list[ChatRequest], list[str]]:
        """A request for each completion, at most ``most``, and what precedes each. Raises Problem."""
        prompts, count = self.prompts, self.choices(most)
        wrong = {
            "suffix": bool(self.suffix),
            "best_of": (self.best_of or count) != count,
            "logprobs": self.logprobs is not None,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise unsupported(name)
        if count * len(prompts) > most:
            raise Problem(400, text("too_many_prompts", most=most), "invalid_value", param="prompt")
        each, client = [prompt for prompt in prompts for _ in range(count)], self.sampled()
        asked = [self.chat_request(names, "", [ClientMessage("user", prompt)], client, "prompt") for prompt in each]
        return asked, each if self.echo else [""] * len(each)


@dataclass
class TextCompletion(ChatCompletion):
    """A completion in the making. ``echoed`` are the texts that precede its choices."""

    echoed: Sequence[str] = ()
    prefix: ClassVar[str] = "cmpl"
    kinds: ClassVar[tuple[str, str]] = ("text_completion", "text_completion")

    def first_chunk(self, index: int = 0) -> ServerSentEvent:
        """The chunk that opens a choice."""
        return self.chunk({"content": self.echoed[index]}, index=index)

    def shown(self, delta: dict[str, Any], finish: str | None, index: int) -> dict[str, Any]:
        """A choice of a chunk."""
        return {"index": index, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}

    def choice(self, task: Task, index: int) -> dict[str, Any]:
        """A whole choice."""
        return self.shown({"content": self.echoed[index] + task.text}, finish_reason(task), index)


async def _submit(
    body: TextCompletionBody, response: Response, services: ServicesDep, who: User, key: IdempotencyKey = None
) -> AsyncIterator[TextCompletion]:
    requests, echoed = body.requests(model_names(services), services.settings.http_choices)
    async with admitted_choices(services, who, requests, key, {}, kept=bool(key)) as choices:
        response.headers.update(choices[0].headers)
        yield TextCompletion(choices, body.model, body.wants_usage, echoed=echoed)


Submission = Annotated[TextCompletion, Depends(_submit)]


@streams(stopping)
def stream_text(completion: Submission, services: ServicesDep) -> Events:
    """Streams a completion as server-sent events."""
    return chunks(services, completion)


router = api_router(prefix="/v1", tags=["OpenAI-compatible"], route_class=either(stream_text))


@router.post("/completions", summary="Create a completion", response_model=None, responses=RESPONSES)
async def complete_text(request: Request, services: ServicesDep, completion: Submission) -> Response:
    """For clients that know no chat completions: each prompt is a message, and its answer the completion."""
    return await completed(services, request, completion)
