"""Model servers that others run: where they are, and whether they are there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from rolecall.errors import ConfigError, MissingExtra, ModelUnavailable
from rolecall.serving.balance import Candidate

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 4.0
VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class ModelAt:
    """A server of a model by its address, such as ``http://127.0.0.1:1234/v1``: any that speaks OpenAI's protocol.

    It is given up to ``slots`` calls at once, and of several the share that its ``weight`` says. ``key`` is what it
    asks for; ``${NAME}`` in it is what the environment or .env say. ``alias`` is its own name for the model.
    """

    url: str
    slots: int = 4
    weight: float = 1.0
    key: str = field(default="", repr=False)
    alias: str = ""

    def resolved(self, name: str, environ: Mapping[str, str]) -> ModelAt:
        """This one with its variables filled in. Raises ConfigError, which names the model ``name``."""
        where = f"config.py, servers of {name}"
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in self.url or " " in self.url:
            raise ConfigError(f"{where}: url: an address such as http://127.0.0.1:1234/v1 is allowed")
        if self.slots < 1 or not 0 < self.weight < float("inf"):
            raise ConfigError(f"{where}: slots={self.slots}, weight={self.weight:g}: 1 or more, over 0 is allowed")
        missing = [variable for variable in VARIABLE.findall(self.key) if not environ.get(variable)]
        if missing:
            raise ConfigError(f"{where}: key names {missing[0]}, which neither the environment nor .env sets")
        return replace(self, url=self.url.rstrip("/"), key=VARIABLE.sub(lambda found: environ[found[1]], self.key))

    def candidate(self, name: str) -> Candidate:
        """It as a server of the model ``name``; its id is the same in every process."""
        digest = hashlib.sha256(f"{name}\n{self.url}\n{self.alias}".encode()).hexdigest()
        return Candidate(digest[:16], self.slots, self.weight)


async def look(place: ModelAt, options: Mapping[str, object]) -> None:
    """Return if the server at ``place`` is there and ready, else raise ModelUnavailable; ``options`` are those of the
    HTTP client."""
    try:
        import httpx2
    except ImportError:
        raise MissingExtra("openai", place.url) from None
    headers = {"Authorization": f"Bearer {place.key}"} if place.key else {}
    wait = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    host = urlsplit(place.url).netloc
    try:
        async with httpx2.AsyncClient(timeout=wait, headers=headers, **options) as http:  # type: ignore[arg-type]
            status = (await http.get(f"{place.url}/models")).status_code
    except (httpx2.HTTPError, ValueError) as error:
        raise ModelUnavailable(f"no connection to {host}: {str(error) or type(error).__name__}") from None
    if status >= 500:
        raise ModelUnavailable(f"{host} answers with status {status}")
