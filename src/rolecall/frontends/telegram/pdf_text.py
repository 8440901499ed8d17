"""The text of a PDF, read in a process of its own: ``python pdf_text.py CHARACTERS < file.pdf``.

Anyone may have made the file, and what reads it may take any time and memory: the process has limits and can be ended.
"""

from __future__ import annotations

import io
import sys

MEGABYTES = 1024
CPU_SECONDS = 30


def limit_resources() -> None:
    """Let the system end this process when it takes too much, where it can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


def text_of(data: bytes, characters: int) -> str:
    """The text of the pages, as many as it takes for so many characters. Raises whatever the library does."""
    from pypdf import PdfReader

    pages, length = [], 0
    for page in PdfReader(io.BytesIO(data)).pages:
        pages.append(page.extract_text().strip())
        length += len(pages[-1])
        if length > characters:
            break
    return "\n\n".join(page for page in pages if page)


def main() -> None:
    """Write the text to the standard output."""
    limit_resources()
    text = text_of(sys.stdin.buffer.read(), int(sys.argv[1]))
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
