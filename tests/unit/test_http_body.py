"""Pictures are taken out of a request's JSON while it arrives, however it is cut into pieces and written."""

from __future__ import annotations

import base64
import json
import random

import pytest

from rolecall.frontends.http.body import UploadScanner, whole_pairs
from rolecall.frontends.http.problems import Problem

OPENING = "data:image/png;base64,"
TEXTS = ('a"b\\', f'{OPENING}"x', "data:", '\\\\"', "☃😀", "x" * 70_000, "")
SIZES = (0, 1, 100, 40_000, 49_000, 49_100, 49_152, 50_000, 200_001)


def scanned(document: bytes, chance: random.Random, longest: int) -> UploadScanner:
    scanner, at = UploadScanner(30 << 20, 60 << 20), 0
    while at < len(document):
        size = chance.randint(1, longest)
        scanner.feed(document[at : at + size])
        at += size
    scanner.close()
    return scanner


@pytest.mark.parametrize("seed", range(60))
def test_a_document_holds_what_was_sent_and_its_pictures_are_beside_it(seed: int) -> None:
    chance = random.Random(seed)
    pictures = [chance.randbytes(chance.choice(SIZES)) for _ in range(chance.randint(0, 4))]
    values = [*chance.choices(TEXTS, k=5), *(OPENING + base64.b64encode(one).decode() for one in pictures)]
    chance.shuffle(values)
    sent = json.dumps({"k": [{"v": value} for value in values], OPENING: 1}, ensure_ascii=bool(seed % 3))
    if seed % 2:
        sent = sent.replace("/", "\\/")
    scanner = scanned(sent.encode(), chance, (300, 5_000, 65_536, 10**9)[seed % 4])
    found = [one["v"] for one in json.loads(bytes(scanner.document))["k"]]
    kept = {name: OPENING + base64.b64encode(upload.read()).decode() for name, upload in scanner.uploads.items()}
    assert [kept.get(value, value) for value in found] == values
    assert all(len(value) <= 64 * 1024 or not value.startswith(OPENING) for value in found)
    for upload in scanner.uploads.values():
        upload.file.close()


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r"cut \ud83d", "cut ?"), (r"\uDE00 cut", "? cut"), (r"\ud83d\ude00", "😀"),
        (r"\ud83d\ud83d\ude00\ude00", "?😀?"), (r"\\ud83d", r"\ud83d"), (r"\\\ud83d\n", "\\?\n"),
        (r"\u00e9\"\ud83dx", 'é"?x'), ("plain", "plain"),
    ],
)  # fmt: skip
def test_half_a_surrogate_pair_is_read_as_a_question_mark(sent: str, read: str) -> None:
    assert json.loads(whole_pairs(f'["{sent}"]'.encode())) == [read]
    assert whole_pairs(f'["{sent}'.encode()) == f'["{sent}'.encode()


@pytest.mark.parametrize("limits", [(100_000, 1 << 30), (1 << 30, 300_000)])
def test_pictures_beyond_a_limit_are_refused_before_they_end(limits: tuple[int, int]) -> None:
    scanner = UploadScanner(*limits)
    picture = OPENING + base64.b64encode(bytes(160_000)).decode()
    with pytest.raises(Problem) as caught:
        scanner.feed(json.dumps([picture, picture, picture]).encode()[:-10])
    assert (caught.value.status_code, caught.value.code) == (413, "image_too_large")
    for upload in scanner.uploads.values():
        upload.file.close()
