"""A chat completion as OpenAI's clients ask for it, and what of it is asked here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rolecall.frontends.http.entrance import Said
from rolecall.frontends.http.problems import Problem

AUTO = "auto"
SYSTEM = ("system", "developer")
PICTURE = "[a picture]"
"""What stands for a picture in the messages before the last."""


class Picture(BaseModel):
    """A picture as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A piece of a message: text, or a picture."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=40)]
    text: str = ""
    image_url: Picture | None = None


class ChatMessage(BaseModel):
    """One message of the conversation so far."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def parts(self) -> list[ContentPart]:
        """Its content, piece by piece."""
        if isinstance(self.content, str):
            return [ContentPart(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """Its words."""
        return "\n".join(PICTURE if part.type == "image_url" else part.text for part in self.parts)


class StreamOptions(BaseModel):
    """What else a stream has to tell."""

    include_usage: bool | None = False


class CompletionQuestion(BaseModel):
    """A chat completion asked for. Fields that are not named here are ignored, sampling parameters among them: the
    deployment sets those."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "auto", "messages": [{"role": "user", "content": "Hello!"}]}]},
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    model: str = Field(AUTO, max_length=200, description="a role, a model that the deployment names, or auto")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=150, description="the conversation, unless X-Conversation-Id names it")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    n: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None

    def said(self, conversation: str, roles: frozenset[str], models: frozenset[str]) -> Said:
        """As the way in takes it. Raises Problem for what cannot be done here."""
        self._check()
        *before, last = self.messages
        if last.role != "user":
            raise Problem(400, "The last message has to be the user's.", "invalid_messages", param="messages")
        if self.model not in {AUTO, *roles, *models}:
            known = ", ".join((AUTO, *sorted(roles)))
            raise Problem(404, f"There is no model {self.model[:100]!r}; there are {known}.", "model_not_found",
                          param="model")  # fmt: skip
        text = "\n".join(part.text for part in _known(last) if part.type == "text")
        pictures = [part.image_url.url for part in _known(last) if part.image_url]
        if not text.strip() and not pictures:
            raise Problem(400, "The last message says nothing.", "invalid_messages", param="messages")
        return Said(
            text,
            conversation or self.user or "",
            self.model if self.model in roles else "",
            "" if self.model in roles or self.model == AUTO else self.model,
            metadata=self.metadata or {},
            images=pictures,
            history=[_remembered(message) for message in before if message.text],
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _check(self) -> None:
        refused = {
            "n": self.n not in (None, 1),
            "tool_choice": self.tool_choice not in (None, "auto", "none"),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
            "logprobs": bool(self.logprobs),
            "modalities": bool(self.modalities) and self.modalities != ["text"],
        }
        for name, is_refused in refused.items():
            if is_refused:
                raise Problem(400, f"{name}: this is not supported here; leave it out.", "unsupported_parameter",
                              param=name)  # fmt: skip


def _known(message: ChatMessage) -> list[ContentPart]:
    for part in message.parts:
        if part.type not in ("text", "image_url") or (part.type == "image_url" and part.image_url is None):
            raise Problem(400, f"A message here consists of text and image_url, not {part.type!r}.",
                          "unsupported_content", param="messages")  # fmt: skip
    return message.parts


def _remembered(message: ChatMessage) -> dict[str, str]:
    role = "system" if message.role in SYSTEM else "assistant" if message.role == "assistant" else "user"
    return {"role": role, "text": message.text}
