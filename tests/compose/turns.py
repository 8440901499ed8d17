"""Conversations over HTTP, and what must be true of them whatever was killed: each turn once and in order."""

from __future__ import annotations

import re
import time
from collections import Counter

import httpx2

from tests.compose.lab import USER, Failed, Lab, expect

LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] \[ *\d+\.\d{3}s\] \[[^\]]+\] [A-Z_]+: .*  ~c?\d+ \d+-\d+(?:\.\d\d)?"
)


class Talk:
    """Some conversations whose turns are sent without waiting; a repeat has the same key, as a careful client does."""

    def __init__(self, lab: Lab, conversations: int) -> None:
        self.lab = lab
        self.stem = f"proof{int(time.time())}"
        self.sent = dict.fromkeys((f"{self.stem}-{number}" for number in range(conversations)), 0)
        self.tasks: dict[tuple[str, int], str] = {}
        self._client = lab.client()

    def send(self, turns: int) -> None:
        """Another few turns to each conversation."""
        for _ in range(turns):
            for name in self.sent:
                self.sent[name] += 1
                self.tasks[name, self.sent[name]] = self._send(name, self.sent[name])

    def until_some_are_done(self, count: int) -> None:
        """Until so many turns are answered."""
        self.lab.until(lambda: sum(self._state(task) == "done" for task in self.tasks.values()) >= count, "answers")

    def check(self, after: str) -> None:
        """Every turn was answered, with its own answer."""
        for (name, turn), task in self.tasks.items():
            answer = self._ended(task)
            expect(answer["state"] == "done" and text(name, turn) in answer["text"], f"{name} turn {turn}", answer)
        self.lab.say(f"after {after}: {len(self.tasks)} turns of {len(self.sent)} conversations answered, 0 lost")

    def reconnect(self) -> None:
        """Go on with the key of now."""
        self._client.close()
        self._client = self.lab.client()

    def _send(self, name: str, turn: int) -> str:
        body = {"text": text(name, turn), "conversation_id": name}
        for _ in range(150):
            try:
                answer = self._client.post("/chat/async", json=body, headers={"idempotency-key": text(name, turn)})
            except httpx2.HTTPError:
                time.sleep(0.4)
                continue
            if answer.status_code in (429, 503):
                time.sleep(0.4)
                continue
            expect(answer.status_code == 202, f"{name} turn {turn}", answer.text)
            return str(answer.json()["id"])
        raise Failed(f"{name} turn {turn} was not taken within a minute")

    def _state(self, task: str) -> str:
        return str(self._client.get(f"/chat/task/{task}").json().get("state"))

    def _ended(self, task: str) -> dict[str, str]:
        answer: dict[str, str] = {}
        for _ in range(150):
            try:
                found = self._client.get(f"/chat/task/{task}", params={"wait": 30})
                answer = found.json()
            except (httpx2.HTTPError, ValueError):
                time.sleep(0.4)
                continue
            if found.status_code == 200 and answer["state"] not in ("pending", "running"):
                return answer
            if found.status_code != 200:
                time.sleep(0.4)
        raise Failed(f"task {task} does not end: {answer}")


def text(name: str, turn: int) -> str:
    """What is said, and then echoed."""
    return f"{name} says {turn}"


def check_transcripts(lab: Lab, talk: Talk) -> None:
    """One file per session, whole, each turn received, completed once and in order, by several workers."""
    lab.until(lambda: all(_written(lab, name) == turns for name, turns in talk.sent.items()), "all is written down")
    hosts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for name, turns in talk.sent.items():
        files = [path for path in (lab.directory / "log" / "conversations").glob(f"*{name}-*/*/*.log")]
        expect(len(files) == 1, f"{name} has one file", files)
        written = files[0].read_text()
        lines = written.splitlines()
        expect(written.endswith("\n") and all(LINE.fullmatch(line) for line in lines), f"{files[0]} is whole", written)
        expect(len(set(lines)) == len(lines), f"{files[0]} has no line twice", written)
        for word in ("RECEIVED", "PROCESSING_COMPLETE"):
            said = [int(found) for found in re.findall(rf"{word}: .*{name} says (\d+)", written)]
            wanted = list(range(1, turns + 1))
            expect(said == wanted, f"{name}: {word} each turn once and in order", said)
        kinds.update(re.findall(r"\] (TAKEN_OVER|FENCED|DEFERRED):", written))
        hosts.update(found for found in re.findall(r"\[samplellm:([^:]+):", written))
        expect(files[0].stat().st_uid in (USER, int(lab.environ.get("ROLECALL_UID", USER))), "the owner", files[0])
    expect(len(hosts) >= 3, "three workers took part", hosts)
    lab.say(
        f"{len(talk.sent)} transcripts, one file each, whole and in order, 0 doubled; {len(hosts)} workers took part; "
        + (", ".join(f"{word} {count}" for word, count in kinds.items()) or "nothing was taken over")
    )


def _written(lab: Lab, name: str) -> int:
    """How many turns of a conversation its transcripts have the end of."""
    files = (lab.directory / "log" / "conversations").glob(f"*{name}-*/*/*.log")
    return sum(len(re.findall(r"\] PROCESSING_COMPLETE: ", path.read_text())) for path in files)
