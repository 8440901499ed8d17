"""The page's own files: sent from memory, and kept by browsers until a new version has others."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Response

router = APIRouter(include_in_schema=False)
STATIC = Path(__file__).with_name("static")
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FOR_GOOD = "public, max-age=31536000, immutable"


def address(name: str) -> str:
    """Where the file ``name`` is served; another one as soon as any of the files changes."""
    return f"/static/{version()}/{name}"


@router.get("/static/{wanted}/{name}")
async def asset(wanted: str, name: str) -> Response:
    """A file of the page."""
    found = files().get(name)
    if found is None:
        raise HTTPException(404, "There is no such file.")
    headers = {"cache-control": FOR_GOOD if wanted == version() else "no-cache"}
    return Response(found, media_type=TYPES[Path(name).suffix], headers=headers)


@router.get("/favicon.ico")
async def favicon() -> Response:
    """What browsers ask for by themselves."""
    return await asset(version(), "icon.svg")


@cache
def files() -> dict[str, bytes]:
    """All of them by name."""
    return {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}


@cache
def version() -> str:
    """Names what the files hold."""
    digest = hashlib.sha256()
    for name, content in files().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
