"""Extracts the text of a document in a separate process: ``python document_text.py KIND CHARACTERS < file``, where KIND
is pdf, docx, xlsx or pptx.

Documents are untrusted, and parsing one may take any time and memory, so the process limits itself and can be killed.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MEGABYTES = 1024
CPU_SECONDS = 30
LOCKED, NO_LIBRARY = 3, 4
"""Exit statuses: the document needs a password; the library that reads such documents is not installed."""


class LockedDocument(Exception):
    """The document cannot be opened without its password."""


def limit_resources() -> None:
    """Limit memory and CPU time of this process, on systems that support it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


def pdf(file: io.BytesIO) -> Iterator[str]:
    """The text of each page. A document with an owner's password only opens without one. Raises LockedDocument."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    try:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise LockedDocument
        for page in reader.pages:
            yield page.extract_text().strip()
    except DependencyError as error:  # an encryption that takes a library
        raise ImportError(str(error)) from error


def docx(file: io.BytesIO) -> Iterator[str]:
    """Paragraphs and tables in their order; a row's cells are separated by tabs."""
    from docx import Document
    from docx.table import Table

    for part in Document(file).iter_inner_content():
        if isinstance(part, Table):
            yield "\n".join("\t".join(cell.text.strip() for cell in row.cells) for row in part.rows)
        else:
            yield part.text.strip()


def xlsx(file: io.BytesIO) -> Iterator[str]:
    """The rows of each sheet, after its name; cells are separated by tabs and formulas show their last value."""
    from openpyxl import load_workbook

    for sheet in load_workbook(file, read_only=True, data_only=True).worksheets:
        yield f"# {sheet.title}"
        for row in sheet.iter_rows(values_only=True):
            cells = ["" if value is None else str(value) for value in row]
            yield "\t".join(cells).rstrip("\t")


def pptx(file: io.BytesIO) -> Iterator[str]:
    """The texts of each slide, after its number, and the speaker's notes."""
    from pptx import Presentation

    for number, slide in enumerate(Presentation(file).slides, 1):
        yield f"# {number}"
        for shape in slide.shapes:
            if shape.has_text_frame:
                yield shape.text_frame.text.strip()
            elif getattr(shape, "has_table", False):
                yield "\n".join("\t".join(cell.text for cell in row.cells) for row in shape.table.rows)
        if slide.has_notes_slide:
            yield slide.notes_slide.notes_text_frame.text.strip()


READERS: Mapping[str, tuple[Callable[[io.BytesIO], Iterator[str]], str]] = {
    "pdf": (pdf, "\n\n"), "docx": (docx, "\n\n"), "xlsx": (xlsx, "\n"), "pptx": (pptx, "\n\n"),
}  # fmt: skip
"""Kind → what reads it, and what stands between its parts."""


def text_of(data: bytes, kind: str, characters: int) -> str:
    """The text of the first parts, until ``characters`` are exceeded. Raises LockedDocument, ImportError, and
    whatever the library raises."""
    read, between = READERS[kind]
    parts, length = list[str](), 0
    for part in read(io.BytesIO(data)):
        parts.append(part)
        length += len(part)
        if length > characters:
            break
    return between.join(part for part in parts if part)


def main(arguments: Any) -> int:
    """Write the text to stdout; the exit status."""
    limit_resources()
    try:
        text = text_of(sys.stdin.buffer.read(), arguments[0], int(arguments[1]))
    except LockedDocument:
        return LOCKED
    except ImportError:
        return NO_LIBRARY
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
