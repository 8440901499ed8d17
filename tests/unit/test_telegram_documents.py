"""Documents that users send, as text."""

from __future__ import annotations

import pytest

from rolecall.frontends.telegram.media import decode_text, shorten, text_of


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
    assert await text_of(pdf("Hello PDF"), "application/pdf") == "Hello PDF"


async def test_a_pdf_of_pictures_alone_has_no_text_and_a_broken_one_cannot_be_read() -> None:
    assert await text_of(pdf("", stream="0 0 m 9 9 l S"), "application/pdf") == ""
    assert await text_of(b"%PDF-1.4 broken", "application/pdf") is None
