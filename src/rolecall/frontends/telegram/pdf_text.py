"""Extracts the text of a PDF in a separate process: ``python pdf_text.py CHARACTERS < file.pdf``.

PDFs are untrusted, and parsing one may take any time and memory, so the process limits itself and can be killed.
"""

from __future__ import annotations

import io
import sys

MEGABYTES = 1024
CPU_SECONDS = 30


def limit_resources() -> None:
    """Limit memory and CPU time of this process, on systems that support it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


def text_of(data: bytes, characters: int) -> str:
    """The text of the first pages, until ``characters`` are exceeded. Raises whatever pypdf raises."""
    from pypdf import PdfReader

    pages, length = [], 0
    for page in PdfReader(io.BytesIO(data)).pages:
        pages.append(page.extract_text().strip())
        length += len(pages[-1])
        if length > characters:
            break
    return "\n\n".join(page for page in pages if page)


def main() -> None:
    """Write the text to stdout."""
    limit_resources()
    text = text_of(sys.stdin.buffer.read(), int(sys.argv[1]))
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
