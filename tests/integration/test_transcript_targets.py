"""Transcripts beyond one machine: object storage that speaks S3, standard output, and several targets at once."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from rolecall.errors import ConfigError, ServerUnavailable
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.transcripts.object_storage import StorageUnavailable, TranscriptObjects
from rolecall.transcripts.record import Record, conversation_dir, parse_line
from rolecall.transcripts.scribe import Batch, Scribe
from rolecall.transcripts.targets import JsonLines, TranscriptTarget, open_targets
from tests.applications import clean_environment, make_application, run_rolecall
from tests.command_line import start_verb
from tests.integration.test_scribe import LOG, add, drained, written
from tests.waiting import wait_until

USER = Path(__file__).with_name("scribe_user.py")


@dataclass
class Storage:
    """A server that speaks S3, on a port of the loopback."""

    url: str
    client: Any
    bucket: str

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}/rolecall"

    def settings(self, **more: Any) -> Settings:
        given = {"aws_endpoint_url": self.url, "aws_region": "us-east-1", "aws_access_key_id": "key"}
        return Settings(**{**given, "aws_secret_access_key": "secret", "log_s3_seconds": 0, **more})

    def target(self, **more: Any) -> TranscriptObjects:
        return TranscriptObjects.open(self.name, self.settings(**more), UTC)

    def objects(self) -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read() for one in found}

    def records(self, conversation: str = "telegram:42") -> list[Record | None]:
        """All lines of a conversation, in the order of their objects."""
        directory = f"rolecall/conversations/{conversation_dir(conversation)}/"
        whole = b"".join(data for key, data in sorted(self.objects().items()) if key.startswith(directory))
        return [parse_line(line, UTC) for line in whole.decode().splitlines()]

    def texts(self, conversation: str = "telegram:42") -> list[str]:
        return [record.text if record else "torn" for record in self.records(conversation)]


@pytest.fixture
def storage() -> Iterator[Storage]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    bucket = f"transcripts-{secrets.token_hex(4)}"  # servers of one process share their buckets
    client.create_bucket(Bucket=bucket)
    yield Storage(url, client, bucket)
    client.close()
    server.stop()


@asynccontextmanager
async def writing(
    server: RedisServer, targets: list[TranscriptTarget], directory: Path, kind: type[Scribe] = Scribe
) -> AsyncIterator[Scribe]:
    scribe = kind(server, 1, directory, process="m4:1", tz=UTC, lease_seconds=2, targets=targets)
    task = asyncio.create_task(scribe.run(), name="scribe of a test")
    try:
        yield scribe
    finally:
        await scribe.stop()
        await task


class HaltingScribe(Scribe):
    """Dies between write and acknowledgement."""

    async def _remove(self, batch: Batch) -> None:
        self._stopped.set()
        raise ServerUnavailable("it died")


async def test_records_become_numbered_objects_of_a_session_and_leave_the_stream(
    server: RedisServer, storage: Storage, tmp_path: Path
) -> None:
    async with writing(server, [storage.target()], tmp_path):
        for text in ("one", "two"):
            await add(server, text)
            await drained(server)
        await add(server, "other", conversation="http:a")
        await drained(server)
    keys = [key for key in storage.objects() if conversation_dir("telegram:42") in key]
    session = f"rolecall/conversations/{conversation_dir('telegram:42')}/2026.11.18/11:06:40"
    assert keys == [f"{session}/000001.log", f"{session}/000002.log"]
    assert storage.texts() == ["one", "two"] and storage.texts("http:a") == ["other"]
    assert not (tmp_path / "conversations").exists() and not (tmp_path / ".scribe").exists()


async def test_a_crash_between_write_and_acknowledgement_doubles_no_line(
    server: RedisServer, storage: Storage, tmp_path: Path
) -> None:
    expected: list[str] = []
    for _ in range(6):
        for _ in range(5):
            expected.append(str(len(expected)))
            await add(server, expected[-1])
        async with writing(server, [storage.target()], tmp_path, HaltingScribe) as scribe:
            await wait_until(scribe._stopped.is_set)
    async with writing(server, [storage.target()], tmp_path):
        await drained(server)
    assert storage.texts() == expected


async def test_two_scribes_that_both_believe_to_lead_write_each_line_once(storage: Storage) -> None:
    frozen, successor = storage.target(), storage.target()
    for target in (frozen, successor):
        target.begin("x")
    entries = [entry for number in range(1, 5) for entry in _entries(f"179500000{number}000-0", str(number))]
    frozen.write(entries[:1])
    successor.write(entries[:3])  # it has seen the first as well
    frozen.write(entries[:2])  # wakes up in the middle of its batch
    await asyncio.gather(asyncio.to_thread(frozen.write, entries), asyncio.to_thread(successor.write, entries))
    assert storage.texts() == ["1", "2", "3", "4"]


def _entries(entry_id: str, text: str) -> Iterator[Any]:
    from rolecall.transcripts.files import LogEntry

    ms = int(entry_id.split("-")[0])
    record = Record(ms=ms, since=0, turn="1", instance="m:h:1:1", word="NOTE", text=text, id=entry_id)
    yield LogEntry("telegram:42", 1_795_000_000_000, record)


async def test_a_storage_that_is_away_holds_records_on_the_server_and_is_said_once(
    server: RedisServer, storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = storage.target(aws_endpoint_url="http://127.0.0.1:9")
    back, away._store = away._store, storage.target()._store
    async with writing(server, [away], tmp_path) as scribe:
        await add(server, "one")
        await drained(server)
        away._store, back = back, away._store
        await add(server, "two")
        await wait_until(lambda: scribe.problem)
        assert (
            scribe.problem.startswith(f"transcripts cannot be written to {storage.name}: ")
            and "secret" not in caplog.text
        )
        assert await server.call("XLEN", LOG) == 1
        away._store = back
        await drained(server)
        assert not scribe.problem
    assert storage.texts() == ["one", "two"]
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"bucket": "misspelt"}, "NoSuchBucket: The specified bucket does not exist"),
        ({"url": "http://127.0.0.1:9"}, "Generic S3 error: HTTP error: error sending request"),
    ],
)
def test_an_error_of_the_storage_is_one_line_that_stays_the_same(
    storage: Storage, changed: dict[str, str], told: str
) -> None:
    target = replace(storage, **changed).target()
    for _ in range(2):
        with pytest.raises(StorageUnavailable) as caught:
            target.begin("born")
        assert str(caught.value) == f"{target.name}: {told}"


async def test_a_reader_of_standard_output_that_has_gone_is_named_as_that(server: RedisServer, tmp_path: Path) -> None:
    reading, writing_end = os.pipe()
    os.close(reading)
    with os.fdopen(writing_end, "wb", buffering=0) as out:
        async with writing(server, [JsonLines(out)], tmp_path) as scribe:
            await add(server, "hello")
            await wait_until(lambda: scribe.problem)
            assert scribe.problem == "transcripts cannot be written: Broken pipe; records wait on the server"


async def test_several_targets_get_the_same_and_a_conversation_is_erased_everywhere(
    server: RedisServer, storage: Storage, tmp_path: Path
) -> None:
    out = io.BytesIO()
    files = open_targets(Settings(), tmp_path, UTC)
    async with writing(server, [*files, JsonLines(out), storage.target()], tmp_path):
        await add(server, "Grüße \udcff")
        await add(server, "mine", conversation="http:a")
        await drained(server)
        assert [record.text for record in written(tmp_path)] == storage.texts()
        await add(server, "", word="FORGET")
        await drained(server)
    assert storage.texts() == [] and written(tmp_path) == [] and storage.texts("http:a") == ["mine"]
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["NOTE", "NOTE", "FORGET"]
    assert (
        lines[1].items() >= {"conversation": "http:a", "text": "mine", "time": "2026-11-18T11:06:40.000+00:00"}.items()
    )


async def test_a_scribe_collects_what_comes_before_it_writes_to_storage(
    server: RedisServer, storage: Storage, tmp_path: Path
) -> None:
    async with writing(server, [storage.target(log_s3_seconds=0.4)], tmp_path):
        for number in range(20):
            await add(server, str(number))
            await asyncio.sleep(0.02)
        await drained(server)
    assert storage.texts() == [str(number) for number in range(20)]
    assert len([key for key in storage.objects() if key.endswith(".log")]) <= 5


@pytest.mark.parametrize("wrong", ["nowhere", "s3://", "s3://A", "directory,", "s3:bucket", "file:///x", ""])
def test_a_target_that_does_not_exist_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="log_targets"):
        Settings(log_targets=wrong)


def test_a_wrong_address_of_the_storage_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL=nonsense is invalid"):
        open_targets(Settings(log_targets="s3://bucket", aws_endpoint_url="nonsense"), Path(), UTC)


def test_standard_output_has_nothing_but_the_lines(tmp_path: Path) -> None:
    program = (
        "from rolecall.transcripts.targets import open_targets; from rolecall.settings import Settings; "
        "from tests.integration.test_transcript_targets import _entries; from pathlib import Path; "
        "target, = open_targets(Settings(log_targets='stdout'), Path(), None); "
        "target.write([*_entries('1795000001000-0', 'hello')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=USER.parents[2])
    assert json.loads(done.stdout)["text"] == "hello", done.stderr


def test_standard_output_of_a_whole_deployment_is_one_json_object_a_line(tmp_path: Path) -> None:
    directory, environment = make_application(tmp_path / "app"), clean_environment({"LOG_TARGETS": "stdout"})
    with open(tmp_path / "out", "w+b") as out, open(tmp_path / "err", "w+b") as err:
        process = start_verb(["up", "--no-chat", "--app", directory], environment, out, err)
        try:
            asyncio.run(wait_until(lambda: "is up in" in (tmp_path / "err").read_text(), seconds=20))
            assert run_rolecall("ask", "--app", directory, "hello").returncode == 0
            asyncio.run(wait_until(lambda: "PROCESSING_COMPLETE" in (tmp_path / "out").read_text(), seconds=20))
        finally:
            process.terminate()
            process.wait(30)
    assert all(json.loads(line)["event"] for line in (tmp_path / "out").read_text().splitlines())
