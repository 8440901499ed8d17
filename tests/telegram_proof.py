"""What the Telegram front end promises, measured on real processes: `python -m tests.telegram_proof`.

The suite runs the same in short (tests/integration/test_telegram_front.py).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.telegram_process import SERVED, Place, telegram_place
from tests.telegram.api import Message, TelegramApi, User

OCCUPANTS = 8
ROUNDS = 5
UNANSWERED = 3
"""How many messages a user writes ahead of the answers."""
Rows = list[tuple[str, str, bool]]
PROMISES = ("Thinking", "Queued", "…")


@dataclass
class Kills:
    """What became of ``turns`` messages while front ends were killed."""

    turns: int
    kills: int = 0
    seconds: float = 0.0
    lost_answers: int = 0
    missing: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    orphans: int = 0

    @property
    def good(self) -> bool:
        return not (self.missing or self.twice or self.disordered) and self.orphans <= math.ceil(self.turns * 0.03)


async def kill_front_ends(
    place: Place, *, turns: int, users: int, every: float = 2.0, lose: float = 0.05, fronts: int = 3, quiet: float = 3,
    most: float = math.inf,
) -> Kills:  # fmt: skip
    """Answer ``turns`` messages of ``users`` while the front end that serves is killed ``every`` so many seconds, at
    most ``most`` times, and Telegram does what it is asked but loses the answer for the share ``lose`` of requests."""
    worker, began = place.start("worker"), time.monotonic()
    for _ in range(fronts):
        place.start("telegram")
    await place.serving()
    place.api.lose(lose)
    people = [place.api.user(100 + number) for number in range(users)]
    counts = [turns // users + (number < turns % users) for number in range(users)]
    result = Kills(turns)
    killing = asyncio.create_task(_kill(place, every, most, result), name="proof kills")
    writing = asyncio.gather(*(_write(place.api, user, count) for user, count in zip(people, counts, strict=True)))
    try:
        await asyncio.wait_for(writing, 60 + turns * 2)
    except TimeoutError:
        pass  # what is missing is counted
    finally:
        killing.cancel()
        await asyncio.wait([killing])
    result.seconds, result.lost_answers = time.monotonic() - began, sum(call.lost for call in place.api.log)
    await _settled(place.api, people, quiet)
    for user, count in zip(people, counts, strict=True):
        judge(place.api, user, count, result)
    assert not worker.ended, worker.logged[-2000:]
    return result


async def _kill(place: Place, every: float, most: float, result: Kills) -> None:
    while result.kills < most:
        await asyncio.sleep(every)
        leaders = [process for process in place.processes if SERVED in process.said and not process.ended]
        if leaders:
            await asyncio.to_thread(leaders[-1].kill)
            result.kills += 1
            place.start("telegram")


async def _write(api: TelegramApi, user: User, count: int) -> None:
    """Write ``count`` messages, a few ahead of the answers, and return when all are answered."""
    for number in range(count):
        await api.wait_for(lambda n=number: n - answered(api, user) < UNANSWERED, seconds=120)
        user.write(f"{user.id}-{number}")
        await asyncio.sleep(random.uniform(0, 0.3))
    await api.wait_for(lambda: answered(api, user) >= count, seconds=120)


def answered(api: TelegramApi, user: User) -> int:
    """How many answers ``user`` has."""
    if user.id not in api.world.chats:
        return 0
    return sum(message.text.startswith("echo: ") for message in api.chat(user.id).answers)


async def _settled(api: TelegramApi, people: Sequence[User], quiet: float) -> None:
    """Give the clearing up its time: until nothing changes for so long."""
    looks, since = -1, time.monotonic()
    give_up = since + 30
    while time.monotonic() - since < quiet and time.monotonic() < give_up:
        now = sum(
            len(message.looks) + message.deleted for user in people for message in api.chat(user.id).every.values()
        )
        if now != looks:
            looks, since = now, time.monotonic()
        await asyncio.sleep(0.1)


def judge(api: TelegramApi, user: User, count: int, result: Kills) -> None:
    """Add what became of the messages of ``user`` to ``result``."""
    answers = [message for message in api.chat(user.id).answers if message.text.startswith("echo: ")]
    times = Counter(message.text for message in answers)
    wanted = [f"echo: {user.id}-{number}" for number in range(count)]
    result.missing += [text for text in wanted if not times[text]]
    result.twice += [text for text in wanted if times[text] > 1]
    came = [message.text for message in sorted(answers, key=_final_at)]
    result.disordered += [text for text, other in zip(came, wanted, strict=False) if text != other]
    result.orphans += sum(message.text.startswith(PROMISES) for message in api.chat(user.id).answers)


def _final_at(message: Message) -> float:
    return next(look.at for look in message.looks if look.text == message.text)


async def placeholder_seconds(place: Place, users: int) -> list[float]:
    """How long each of ``users`` waits for a placeholder, all writing at once while every instance is busy."""
    await place.up(ECHO_DELAY="600", TELEGRAM_PER_SECOND="1000")
    for number in range(OCCUPANTS):
        place.api.user(1 + number).write("keep them busy")
    await place.api.wait_for(lambda: all(place.api.chat(1 + number).answers for number in range(OCCUPANTS)), seconds=30)
    people = [place.api.user(1000 + number) for number in range(users)]
    for user in people:
        user.write("hello")
    await place.api.wait_for(lambda: all(place.api.chat(user.id).answers for user in people), seconds=60)
    return sorted(_waited(place.api, user) for user in people)


def _waited(api: TelegramApi, user: User) -> float:
    asked, shown, *_ = api.chat(user.id).messages
    return shown.looks[0].at - asked.looks[0].at


async def flood_seconds(place: Place, users: int, penalty: float) -> tuple[float, float]:
    """The longest wait of ``users`` for their answers, first without and then with a chat beside them that Telegram
    lets wait for ``penalty`` seconds, and which has much to say."""
    await place.up(TELEGRAM_PER_SECOND="1000")
    calm = await _longest(place.api, [place.api.user(2000 + number) for number in range(users)])
    flooded = place.api.user(1)
    for number in range(3):
        flooded.write(f"question {number}")
    place.api.flood(1, penalty)
    return calm, await _longest(place.api, [place.api.user(3000 + number) for number in range(users)])


async def _longest(api: TelegramApi, people: Sequence[User]) -> float:
    """All write, a few a second; the longest time from a message to its answer."""
    for user in people:
        user.write(f"{user.id}-0")
        await asyncio.sleep(0.05)
    await api.wait_for(lambda: all(answered(api, user) for user in people), seconds=60)
    waits = [_final_at(api.chat(user.id).answers[0]) - api.chat(user.id).messages[0].looks[0].at for user in people]
    return max(waits)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * share) - 1)]


async def stranger_cost(place: Place) -> tuple[int, int]:
    """Envelopes and answers that a stranger's ten messages cost; he is told once that the bot is not for him."""
    process = await place.up(TELEGRAM_ALLOWED="11")
    stranger = place.api.user(666)
    for number in range(10):
        stranger.write(f"let me in {number}")
    await place.api.wait_for(lambda: place.api.chat(666).answers, seconds=20)
    await place.api.wait_for(lambda: not place.api.world.updates.waiting, seconds=20)
    records = [path for path in (place.directory / "log").rglob("*.log")]
    assert process.stop() == 0
    return len(records), len(place.api.chat(666).answers)


def leaks(place: Place) -> list[str]:
    """The files under the place in which the token, or the secret half of it, can be read."""
    secret = place.api.token.partition(":")[2].encode()
    files = (path for path in place.directory.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(place.directory)) for path in files if secret in path.read_bytes()]


async def token_leaks(place: Place) -> tuple[list[str], int]:
    """Where the token can be read after everything was logged that is: conversation, lost answers, Telegram away, a
    wrong token, the other verbs. Returns the files, and how many bytes were looked through."""
    process = await place.up(LOG_LEVEL="DEBUG")
    user = place.api.user(7)
    place.api.lose(0.3)
    for number in range(5):
        user.write(f"7-{number}")
    await place.api.wait_for(lambda: answered(place.api, user) == 5, seconds=60)
    place.api.down()
    user.write("7-5")
    await asyncio.sleep(3)
    place.api.up()
    await place.api.wait_for(lambda: answered(place.api, user) == 6, seconds=60)
    for verb in (("check",), ("invite",), ("check", "--json")):
        await asyncio.to_thread(place.start(*verb, LOG_LEVEL="DEBUG").fork.wait, 60)
    assert process.stop() == 0
    wrong = place.start("telegram", token=place.api.token + "-but-another", LOG_LEVEL="DEBUG")
    await asyncio.to_thread(wrong.fork.wait, 60)
    written = sum(len(process.said) + len(process.logged) for process in place.processes)
    return leaks(place), written


async def _proof(turns: int, users: int, writers: int) -> bool:
    rows: Rows = []
    for name, measure in (
        ("latency", _show_latency(writers)), ("flood", _show_flood()), ("strangers", _show_strangers()),
        ("token", _show_token()), ("kills", _show_kills(turns, users)),
    ):  # fmt: skip
        print(f"… {name}", file=sys.stderr, flush=True)
        rows += await measure
    width = max(len(name) for name, _, _ in rows)
    for name, value, good in rows:
        print(f"{name:{width}}  {'ok  ' if good else 'FAIL'}  {value}")
    return all(good for _, _, good in rows)


async def _show_latency(users: int) -> Rows:
    rounds = []
    for _ in range(ROUNDS):
        async with TelegramApi() as api, _place(api) as place:
            rounds.append(await placeholder_seconds(place, users))
    p50, p99 = (sorted(percentile(waits, share) * 1000 for waits in rounds) for share in (0.5, 0.99))
    text = (
        f"p50 {p50[ROUNDS // 2]:.0f} ms, p99 {p99[ROUNDS // 2]:.0f} ms: the middle of {ROUNDS} rounds, "
        f"p99 {p99[0]:.0f} to {p99[-1]:.0f} (at most 200 ms at p99)"
    )
    return [(f"placeholders of {users} users at once, all instances busy", text, p99[ROUNDS // 2] <= 200)]


async def _show_flood() -> Rows:
    async with TelegramApi() as api, _place(api) as place:
        calm, beside = await flood_seconds(place, 40, 30)
    text = f"{beside * 1000:.0f} ms, without it {calm * 1000:.0f} ms (at most 200 ms more)"
    return [("longest wait of 40 users beside a chat that has to wait 30 s", text, beside - calm <= 0.2)]


async def _show_strangers() -> Rows:
    async with TelegramApi() as api, _place(api) as place:
        envelopes, answers = await stranger_cost(place)
    text = f"{envelopes} transcripts, {answers} answers (0 and 1)"
    return [("ten messages of a stranger", text, (envelopes, answers) == (0, 1))]


async def _show_token() -> Rows:
    async with TelegramApi(token="4242:a-secret-that-is-nowhere-else") as api, _place(api) as place:
        found, written = await token_leaks(place)
    text = f"{len(found)} of {written:,} characters at DEBUG and all files beside {' '.join(found)}"
    return [("the token in what is written", text, not found and written > 0)]


async def _show_kills(turns: int, users: int) -> Rows:
    async with TelegramApi() as api, _place(api) as place:
        found = await kill_front_ends(place, turns=turns, users=users)
    what = f"{found.kills} kills in {found.seconds:.0f} s, {found.lost_answers} answers of Telegram lost"
    counts = (
        f"{len(found.missing)} missing, {len(found.twice)} twice, {len(found.disordered)} out of order; "
        f"{found.orphans} placeholders left over ({found.orphans / turns:.1%}, at most 3%)"
    )
    return [(f"{turns} turns, front end killed every 2 s", f"{what}: {counts}", found.good)]


class _place:
    """A place in a directory of its own."""

    def __init__(self, api: TelegramApi) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rolecall")
        self._inner = telegram_place(Path(self._directory.name), api)

    async def __aenter__(self) -> Place:
        return self._inner.__enter__()

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self._inner.__exit__, None, None, None)
        self._directory.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--writers", type=int, default=100)
    given = parser.parse_args()
    return 0 if asyncio.run(_proof(given.turns, given.users, given.writers)) else 1


if __name__ == "__main__":
    sys.exit(main())
