"""Transcripts in an S3-compatible object storage: each write is an object of its own, numbered within its session.

``<prefix>/conversations/<conversation>/<YYYY.MM.DD>/<HH:MM:SS>/000001.log`` and so on; one after the other they are the
file that the directory would have. An object is created, never replaced: of two scribes that both believe to lead, one
finds the number taken, reads what is there, and writes the rest.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from rolecall.errors import MissingExtra
from rolecall.settings import Settings
from rolecall.transcripts.files import SessionLogs
from rolecall.transcripts.record import Order, Record, entry_order, parse_line
from rolecall.transport.http_client import address

if TYPE_CHECKING:
    from obstore.store import S3Store

BORN = ".scribe-born"
SESSIONS = 10_000
"""Sessions whose last object is remembered."""
WRITERS = 16
TIMEOUT = "10s"
REQUEST = re.compile(r"Error performing \S+ \S+ in \S+?(, after [^-]*)?\s+- ")
"""What an error says of the request: durations and addresses."""
TOLD = re.compile("<Code>([^<]+)</Code>.*?<Message>([^<]+)</Message>", re.DOTALL)
"""What a storage that answers says, such as NoSuchBucket."""
T = TypeVar("T")


class StorageUnavailable(OSError):
    """Raised when the object storage cannot be reached or refuses."""


@dataclass(frozen=True)
class Segment:
    """The last object of a session: its number, and the order of its last record."""

    number: int = 0
    last: Order = (0, 0, 0)


class TranscriptObjects(SessionLogs):
    """See TranscriptTarget. ``name`` is ``s3://bucket/prefix``."""

    def __init__(self, name: str, store: S3Store, tz: tzinfo | None, pause: float) -> None:
        super().__init__(tz, pause)
        self.name = name
        self._store = store
        self._segments: OrderedDict[PurePosixPath, Segment] = OrderedDict()

    @classmethod
    def open(cls, name: str, settings: Settings, tz: tzinfo | None) -> TranscriptObjects:
        """The storage that ``name`` and the settings AWS_… say. Raises ConfigError."""
        if importlib.util.find_spec("obstore") is None:
            raise MissingExtra("s3", f"LOG_TARGETS={name}")
        from obstore.store import S3Store

        parts, options = urlsplit(name), dict[str, Any]()
        if endpoint := settings.aws_endpoint_url:
            options |= {"endpoint": address("AWS_ENDPOINT_URL", endpoint), "virtual_hosted_style_request": False}
        key, secret = settings.aws_access_key_id, settings.aws_secret_access_key
        given = {"region": settings.aws_region, "access_key_id": key and key.get_secret_value(),
                 "secret_access_key": secret and secret.get_secret_value()}  # fmt: skip
        options |= {option: value for option, value in given.items() if value}
        store = S3Store(
            parts.netloc, prefix=parts.path.strip("/") or None, retry_config={"max_retries": 2},
            client_options={"timeout": TIMEOUT, "allow_http": True}, **options,
        )  # fmt: skip
        return cls(name, store, tz, settings.log_s3_seconds)

    def begin(self, born: str) -> None:
        """See TranscriptTarget. A new server gets new sessions: its entry ids may start over."""
        self._segments.clear()
        known = (self._get(BORN) or b"").decode().split()
        if born not in known:
            known.append(born)
            self._asked(lambda obstore: obstore.put(self._store, BORN, "\n".join(known).encode()))
        self._generation = known.index(born)

    def close(self) -> None:
        """See TranscriptTarget."""
        self._segments.clear()

    def _append_all(self, waiting: dict[PurePosixPath, list[Record]]) -> None:
        if waiting:
            with ThreadPoolExecutor(min(len(waiting), WRITERS), thread_name_prefix="rolecall-s3") as pool:
                list(pool.map(self._append, waiting, waiting.values()))
        waiting.clear()
        while len(self._segments) > SESSIONS:
            self._segments.popitem(last=False)

    def _append(self, path: PurePosixPath, records: list[Record]) -> None:
        while True:
            segment = self._segments.get(path) or self._last(path)
            fresh = [record for record in records if record.order > segment.last]
            following = Segment(segment.number + 1, fresh[-1].order if fresh else segment.last)
            if not fresh or self._create(_key(path, following.number), b"".join(map(self._line, fresh))):
                self._segments[path] = following if fresh else segment
                return
            self._segments.pop(path, None)  # another scribe wrote it, or this one did and the reply was lost

    def _last(self, path: PurePosixPath) -> Segment:
        names = sorted(self._names(f"{_directory(path)}/"))
        if not names:
            return Segment()
        lines = (self._get(names[-1]) or b"").decode("utf-8", "replace").splitlines()
        orders = [entry_order(record.id) for line in lines if (record := parse_line(line))]
        return Segment(int(PurePosixPath(names[-1]).stem), orders[-1] if orders else (0, 0, 0))

    def _forget(self, name: str) -> None:
        for path in [path for path in self._segments if path.parts[0] == name]:
            del self._segments[path]
        if names := self._names(f"conversations/{name}/"):
            self._asked(lambda obstore: obstore.delete(self._store, names))

    def _names(self, prefix: str) -> list[str]:
        return self._asked(
            lambda obstore: [str(one["path"]) for page in obstore.list(self._store, prefix) for one in page]
        )

    def _create(self, key: str, data: bytes) -> bool:
        """Whether the object is new and now there."""

        def create(obstore: Any) -> bool:
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

        return self._asked(create)

    def _get(self, key: str) -> bytes | None:
        def get(obstore: Any) -> bytes | None:
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

        return self._asked(get)

    def _asked(self, work: Callable[[Any], T]) -> T:
        import obstore

        try:
            return work(obstore)
        except (obstore.exceptions.BaseError, OSError) as error:  # FileNotFoundError: there is no such bucket
            raise StorageUnavailable(f"{self.name}: {_cause(str(error)) or type(error).__name__}") from None


def _cause(text: str) -> str:
    """What the storage says in an error, else its first line, without what differs each time."""
    if told := TOLD.search(text):
        return ": ".join(told.groups())[:200]
    return REQUEST.sub("", text).strip().partition("\n")[0][:200]


def _directory(path: PurePosixPath) -> str:
    return f"conversations/{path.with_suffix('')}"


def _key(path: PurePosixPath, number: int) -> str:
    return f"{_directory(path)}/{number:06d}.log"
