"""Documents that users send, as text."""

from __future__ import annotations

import asyncio
import io
import shlex
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from pypdf import PdfWriter

from rolecall.bus.blobs import sound_type
from rolecall.frontends.documents import UnreadableFile, decode_text, shorten, text_of


def pdf(text: str, *, stream: str = "") -> bytes:
    """The least that is a PDF."""
    content = stream or f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(content)}>>\nstream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{one}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    tail = f"xref\n0 6\n0000000000 65535 f \n{table}trailer\n<</Size 6/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + tail.encode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Größe\r\n2".encode(), "Größe\n2"),
        ("\ufeffhello".encode(), "hello"),
        ("Привет".encode("utf-16"), "Привет"),
        ("Привет, как дела".encode("cp1251"), "Привет, как дела"),
        ("La fin de l’été".encode("cp1252"), "La fin de l’été"),
        (
            "这是一个用国标编码写的文本文件，里面有很多汉字。".encode("gbk"),
            "这是一个用国标编码写的文本文件，里面有很多汉字。",
        ),
        ("これはシフトJISで書かれたテキストです。".encode("shift_jis"), "これはシフトJISで書かれたテキストです。"),
        (
            "Это текст в кодировке КОИ8, довольно длинный.".encode("koi8_r"),
            "Это текст в кодировке КОИ8, довольно длинный.",
        ),
        (bytes(range(128, 256)) * 4, None),
        (b"", ""),
        (b"\x7fELF\x02\x01\x00\x00", None),
        (b"PK\x03\x04\x14\x00\xff\xfe", None),
    ],
)
def test_a_text_is_read_in_the_encoding_it_has(data: bytes, text: str | None) -> None:
    assert decode_text(data) == text


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    lines = "\n".join(f"line {number}" for number in range(1000))
    short = shorten(lines, 400)
    assert short.startswith("line 0\n") and short.endswith("line 999")
    assert "characters left out" in short and len(short) < 480
    assert shorten("short", 400) == "short"


async def test_the_text_of_a_pdf_is_read() -> None:
    assert await text_of(pdf("Hello PDF")) == "Hello PDF"


async def test_a_pdf_of_pictures_alone_has_no_text_and_a_broken_one_cannot_be_read() -> None:
    with pytest.raises(UnreadableFile, match="empty"):
        await text_of(pdf("", stream="0 0 m 9 9 l S"))
    with pytest.raises(UnreadableFile, match="unknown"):
        await text_of(b"%PDF-1.4 broken")


def locked(user: str, owner: str, algorithm: str) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(pdf("Hello PDF")))
    writer.encrypt(user, owner, algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
async def test_a_pdf_that_only_its_owner_may_change_is_read_and_one_with_a_password_is_said(algorithm: str) -> None:
    assert await text_of(locked("", "owner", algorithm)) == "Hello PDF"
    with pytest.raises(UnreadableFile, match="locked"):
        await text_of(locked("secret", "owner", algorithm))


def saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


async def test_the_text_of_a_docx_is_read_with_its_tables_in_their_place() -> None:
    document = docx.Document()
    document.add_heading("Report", 1)
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "apples", "7"
    document.add_paragraph("The end.")
    assert await text_of(saved(document)) == "Report\n\napples\t7\n\nThe end."


async def test_the_sheets_of_an_xlsx_are_read_row_by_row() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Fruit"
    sheet.append(["apples", 7, None])
    sheet.append(["pears", None, 2.5])
    assert await text_of(saved(book)) == "# Fruit\napples\t7\npears\t\t2.5"


async def test_the_slides_of_a_pptx_are_read_with_their_notes() -> None:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[0])
    slide.shapes.title.text = "Welcome"
    slide.notes_slide.notes_text_frame.text = "say hello"
    assert await text_of(saved(show)) == "# 1\n\nWelcome\n\nsay hello"


async def test_an_office_document_with_a_password_is_said_and_another_archive_cannot_be_read() -> None:
    with pytest.raises(UnreadableFile, match="locked"):
        await text_of(b"\xd0\xcf\x11\xe0" + bytes(600) + "EncryptedPackage".encode("utf-16-le"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "hello")
    for archived in (packed.getvalue(), b"PK\x03\x04word/ broken"):
        with pytest.raises(UnreadableFile, match="unknown"):
            await text_of(archived)


async def test_a_document_whose_library_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(UnreadableFile, match="unread"):
        await text_of(pdf("Hello PDF"))


@pytest.mark.parametrize(
    ("data", "claimed", "found"),
    [
        (b"OggS...", "audio/x-opus+ogg", "audio/ogg"),
        (b"....ftypM4A ", "audio/mpeg", "audio/mp4"),
        (b"\xff\xf1...", "audio/aac", "audio/aac"),
        (b"???", "audio/ogg; codecs=opus", "audio/ogg"),
    ],
)
def test_a_recording_is_named_by_its_container(data: bytes, claimed: str, found: str) -> None:
    assert sound_type(data, claimed) == found


async def test_a_file_that_takes_long_to_read_holds_up_nobody() -> None:
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)

    measuring = asyncio.create_task(measure())
    began = time.monotonic()
    assert await text_of(b"hello world " * 400_000 + b"\xe9")
    measuring.cancel()
    assert longest < (time.monotonic() - began) / 2
