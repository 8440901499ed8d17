"""Where the models of a provider are asked: the server, its key, its proxy and its limits of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rolecall.errors import ConfigError, ModelTimeout, ModelUnavailable
from rolecall.settings import Settings
from rolecall.transport.http_client import address, client_options
from rolecall.transport.proxy import proxy_of

if TYPE_CHECKING:
    from pydantic import SecretStr

LIST_SECONDS = 20
EMBEDDING_SECONDS = 120


@dataclass(frozen=True)
class Endpoint:
    """The server of a model, and how to treat it; times in seconds, None is no limit. ``sampling`` are fields of a
    request for free text that a server knows beyond those of OpenAI."""

    url: str
    key: str = field(repr=False)
    proxy: str = "SYSTEM"
    connect: float = 5
    first_token: float | None = 60
    idle_token: float | None = 30
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, variable: str, url: str, key: str, *, version: str = "") -> Endpoint:
        """The server at ``url``, from the setting ``variable``, with the proxy and limits of ``settings``. A
        ``version`` of its API at the end of the address is left out. Raises ConfigError for a bad address."""
        return cls(
            url=address(variable, url).removesuffix(version), key=key, proxy=proxy_of(settings.proxy, url),
            connect=settings.connect_seconds, first_token=settings.first_token_seconds,
            idle_token=settings.idle_token_seconds,
        )  # fmt: skip

    @property
    def official(self) -> bool:
        """True for OpenAI's own servers, those of its regions included."""
        return f".{urlsplit(self.url).hostname}".endswith(".api.openai.com")

    def client_options(self, http: ModuleType) -> dict[str, Any]:
        """Arguments for a client of ``http``, which is httpx or httpx2, that asks this server. Raises ConfigError."""
        wait = http.Timeout(connect=self.connect, read=None, write=30, pool=None)
        return {**client_options(self.url, self.proxy, http), "timeout": wait}


def key_for(name: str, secret: SecretStr | None, own: str | None, needs: str, variable: str) -> str:
    """The key of the model ``name``. A server of one's own at ``own`` may need none; it is ``none`` then, because the
    SDKs want one. Raises ConfigError, which says what ``needs`` to be set, or that ``variable`` may name a server."""
    key = secret.get_secret_value().strip() if secret else ""
    if not key and not own:
        raise ConfigError(
            f"{name} needs {needs} in the environment or in .env, or set {variable} to a server of your own"
        )
    return key or "none"


@contextmanager
def usable_proxy(name: str) -> Iterator[None]:
    """For a block that makes a client for the model ``name``. Raises ModelUnavailable if the proxy cannot be used."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise ModelUnavailable(f"{name}: the proxy cannot be used: {error}; PROXY=NO goes without") from None


@asynccontextmanager
async def embedding_time(name: str) -> AsyncIterator[None]:
    """For a block that has the model ``name`` make vectors. Raises ModelTimeout after EMBEDDING_SECONDS."""
    try:
        async with asyncio.timeout(EMBEDDING_SECONDS):
            yield
    except TimeoutError:
        raise ModelTimeout(f"{name}: no embeddings within {EMBEDDING_SECONDS} s") from None


async def listed(provider: str, names: Awaitable[Iterable[str]]) -> list[str]:
    """``name@provider`` of ``names``, sorted. Raises ModelTimeout where they take longer than LIST_SECONDS."""
    try:
        async with asyncio.timeout(LIST_SECONDS):
            return sorted(f"{name}@{provider}" for name in await names)
    except TimeoutError:
        raise ModelTimeout(f"{provider}: no list of models within {LIST_SECONDS} s") from None
