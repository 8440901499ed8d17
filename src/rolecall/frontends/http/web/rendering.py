"""Pages from templates. All text is escaped; a page runs only scripts of its own files, which never parse HTML."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.boundary import HEADERS
from rolecall.frontends.http.problems import text
from rolecall.frontends.http.services import Services
from rolecall.frontends.texts import section
from rolecall.transcripts.record import EPOCH, LAST_MS, conversation_dir, visible
from rolecall.transcripts.words import tone_of

TEMPLATES = Path(__file__).with_name("templates")
THEME_COOKIE = "rolecall_theme"
POLICY = (
    f"{HEADERS['content-security-policy']}; worker-src 'self'; require-trusted-types-for 'script'; trusted-types worker"
)
MICROPHONE = "camera=(), geolocation=(), microphone=(self)"
"""The permissions of pages: dictation needs the microphone, once the user allows it."""
CHAT = ("chat", "/", "chat")
OPERATOR_PAGES = (
    ("conversations", "/web/conversations", "conversations"),
    ("now", "/web/now", "now"),
    ("log", "/web/log", "log"),
    ("dead_letters", "/web/dead", "dead"),
    ("usage", "/web/usage", "usage"),
    ("people", "/web/people", "role"),
)
"""The navigation: text, address, icon."""
KEYBOARD = (
    ("/", "key_focus"), ("Enter", "key_send"), ("Shift Enter", "key_line"), ("Esc", "key_stop"), ("↑", "key_last"),
    ("Ctrl K", "key_search"), ("Ctrl Shift O", "key_new"), ("↑ ↓", "key_lists"), ("?", "keyboard"),
)  # fmt: skip
"""The keyboard shortcuts: keys, text."""
BLANK = {
    "conversation": {
        "id": "", "title": "", "name": "", "turns": 0, "errors": 0, "last": 0, "running": False, "said": "",
    },
    "turn": {"turn": "", "said": "", "total": 0, "state": "", "tone": "", "hops": (), "depth": 0},
    "hop": {
        "instance": "", "queued": 0, "started": 0, "ended": 0, "model": 0, "models": "", "tokens_in": 0,
        "tokens_out": 0, "cost": 0,
    },
    "record": {"ms": 0, "since": 0, "turn": "", "instance": "", "word": "", "text": "", "id": ""},
}  # fmt: skip
"""Empty rows, which scripts copy and fill."""
router = APIRouter(include_in_schema=False)
STATIC = Path(__file__).with_name("static")
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
IMMUTABLE = "public, max-age=31536000, immutable"


def render(
    services: Services, request: Request, who: Principal | None, template: str, name: str = "", status: int = 200,
    **values: Any,
) -> HTMLResponse:  # fmt: skip
    """Render ``template``. ``name`` is the page's entry in the navigation."""
    theme = request.cookies.get(THEME_COOKIE, "")
    page = (
        _environment(services.tz)
        .get_template(template)
        .render(
            who=who,
            here=name,
            page=template.removesuffix(".html"),
            nav=(CHAT, *(OPERATOR_PAGES if who and who.admin else ())),
            dead=0,
            theme=theme if theme in ("dark", "light") else "",
            **values,
        )
    )
    return HTMLResponse(page, status, {"content-security-policy": POLICY, "permissions-policy": MICROPHONE})


def page_text(key: str, **values: object) -> str:
    """A text of the section ``[page]`` of texts.toml, with ``values`` put in."""
    return section("page")[key].format(**values)


def seconds(ms: float) -> str:
    """A duration as the scripts format it: 12 ms, 1.23 s, 12.3 s."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"


def whole(number: int) -> str:
    """A count as the scripts format it, with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u2009")


def money(amount: float) -> str:
    """A cost as the scripts format it."""
    return f"${amount:.{4 if amount < 1 else 2}f}" if amount else "$0"


def share(ms: float, total: float) -> float:
    """The width of ``ms`` in a bar that is 1000 wide and stands for ``total``."""
    return round(min(1000.0, 1000 * ms / total), 1) if total else 0.0


@cache
def _environment(tz: tzinfo | None) -> jinja2.Environment:
    def at(ms: int, form: str) -> str:
        return (EPOCH + timedelta(milliseconds=min(max(ms, 0), LAST_MS))).astimezone(tz).strftime(form)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"static": address, "blank": BLANK, "keyboard": KEYBOARD, "t": page_text}
    environment.filters |= {
        "moment": lambda ms: at(ms, "%d %b %H:%M"),
        "clock": lambda ms: f"{at(ms, '%H:%M:%S')}.{ms % 1000:03d}",
        "seconds": seconds,
        "share": share,
        "whole": whole,
        "money": money,
        "tone": tone_of,
        "visible": visible,
        "pretty": _pretty,
        "directory": conversation_dir,
    }
    return environment


def _pretty(envelope: object) -> str:
    """An envelope as indented JSON, with control characters escaped."""
    text = envelope if isinstance(envelope, str) else json.dumps(envelope, indent=2, ensure_ascii=False)
    return "\n".join(visible(line) for line in text.split("\n"))


def address(name: str) -> str:
    """The URL of a static file; it changes whenever any of the files does."""
    return f"/static/{version()}/{name}"


@router.get("/static/{wanted}/{name}")
async def asset(request: Request, wanted: str, name: str) -> Response:
    """Serve a static file."""
    if name not in files():
        raise HTTPException(404, text("no_file"))
    return file_response(request, name, IMMUTABLE if wanted == version() else "no-cache")


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """Serve the icon that browsers request on their own."""
    return file_response(request, "icon.svg", "no-cache")


@router.get("/worker.js")
async def worker(request: Request) -> Response:
    """Serve the service worker, at an address above all pages."""
    return file_response(request, "worker.js", "no-cache")


@router.get("/manifest.webmanifest")
async def manifest() -> Response:
    """Describe the page to a phone that installs it."""
    icons = [
        {"src": address(f"icon-{size}.png"), "sizes": f"{size}x{size}", "type": "image/png", "purpose": purpose}
        for size, purpose in ((192, "any"), (512, "any"), (512, "maskable"))
    ]
    described = {
        "name": "Rolecall", "short_name": "Rolecall", "id": "/", "start_url": "/", "scope": "/",
        "display": "standalone", "background_color": "#f6f6f3", "theme_color": "#f6f6f3", "icons": icons,
    }  # fmt: skip
    return Response(json.dumps(described), media_type="application/manifest+json")


def file_response(request: Request, name: str, cached: str) -> Response:
    """The static file ``name``, compressed if the client reads that. ``cached`` is its Cache-Control."""
    headers = {"cache-control": cached, "vary": "Accept-Encoding"}
    content = files()[name]
    if "gzip" in request.headers.get("accept-encoding", "") and len(smaller := compressed(name)) < len(content):
        content, headers["content-encoding"] = smaller, "gzip"
    return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)


@cache
def compressed(name: str) -> bytes:
    """The static file ``name`` as gzip."""
    return gzip.compress(files()[name], 9, mtime=0)


@cache
def files() -> dict[str, bytes]:
    """The static files by name; the scripts' texts are one of them."""
    texts = json.dumps(dict(section("page")), ensure_ascii=False, separators=(",", ":"))
    paths = sorted([*STATIC.iterdir(), *(STATIC / "lib").iterdir()])
    found = {path.name: path.read_bytes() for path in paths if path.suffix in TYPES}
    return {**found, "texts.js": f"export const texts={texts}".encode()}


@cache
def version() -> str:
    """A digest of all static files."""
    digest = hashlib.sha256()
    for name, content in files().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
