"""Generate what the services need to start: passwords, keys and the server's ACL file.

Runs once per `docker compose up` and is idempotent: values stay unless the environment sets another one. Each service
has its own volume below MADE and sees no other. On an error it prints one line and exits with 1.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

MADE = Path("/run/made")
TEMPLATE = Path(__file__).parents[1] / "valkey" / "users.acl.template"
LOG = Path("/app/log")
LEAST = 22
"""Minimum length of a secret: 128 bits at six bits per character."""
FORM = re.compile(rf"[!-~]{{{LEAST},200}}")
USERS = ("worker", "front", "telegram", "operator")
WORDS = re.compile(r"<([a-z ]+)>")
PROVIDERS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY",
             "OLLAMA_URL", "OLLAMA_HOST")  # fmt: skip


class Wrong(Exception):
    """An error that a person has to fix; its text says how."""


def main(environ: Mapping[str, str] = os.environ, made: Path = MADE, log: Path = LOG) -> int:
    """Generate everything and print where it is. Returns the exit status."""
    try:
        check_log(log)
        fresh = make(environ, made)
    except Wrong as wrong:
        print(f"init: {wrong}", file=sys.stderr)
        return 1
    print("init: keys and passwords are ready, each in the volume of the service that needs it")
    print("init: the API key:  docker compose exec front cat /run/secrets/http-key")
    if fresh:
        print(f"init: new: {', '.join(fresh)}; to apply to running services:  docker compose restart")
    if not any(environ.get(name) for name in PROVIDERS):
        print(
            "init: .env configures no model provider. For a small local model:  docker compose --profile local up -d\n"
            "init: or put a key such as OPENAI_API_KEY into .env and name the model in config.py (docs/deploy.md)"
        )
    return 0


def check_log(log: Path) -> None:
    """Raise Wrong if transcripts cannot be written."""
    probe = log / ".writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        uid, gid, owner = os.getuid(), os.getgid(), log.stat() if log.exists() else None
        remedy = f"sudo chown -R {uid}:{gid} log"
        if owner is not None and owner.st_uid not in (0, uid):
            remedy += f", or put ROLECALL_UID={owner.st_uid} and ROLECALL_GID={owner.st_gid} into .env"
        raise Wrong(f"the directory log cannot be written by user {uid} ({error.strerror}): {remedy}") from error


def make(environ: Mapping[str, str], made: Path) -> list[str]:
    """Write everything below ``made``; returns the names of new or changed secrets. Raises Wrong."""
    fresh: list[str] = []

    def secret(name: str, variable: str, generate: Callable[[], str], *files: str) -> str:
        paths = [made / file for file in files]
        known = read(paths[0])
        value = given(environ, variable) or known or generate()
        if value != known:
            fresh.append(name)
        for path in paths:
            write(path, value)
        return value

    passwords = {
        user: secret(f"password of {user}", f"VALKEY_{user.upper()}_PASSWORD", password, f"{user}/redis-password")
        for user in USERS
    }
    passwords["health"] = secret("password of health", "", password, "valkey/health")
    secret("API key", "HTTP_KEY", api_key, "front/http-key")
    secret("key of the local model", "LOCAL_KEY", password, "worker/local-key", "model/local-key")
    acl, users = made / "valkey" / "users.acl", rendered(TEMPLATE.read_text(), passwords)
    if not fresh and read(acl) != users.strip():
        fresh.append("permissions of the services")
    write(acl, users)
    return fresh


def rendered(template: str, passwords: Mapping[str, str]) -> str:
    """The server's ACL file."""
    lines = [line for line in template.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\n[ \t]+", " ", "\n".join(lines)).splitlines()
    words = {f"password {user}": f"#{hashlib.sha256(text.encode()).hexdigest()}" for user, text in passwords.items()}
    users = []
    for line in joined:
        kind, name, rest = line.split(" ", 2)
        text = WORDS.sub(lambda found: words[found[1]], rest)
        if kind == "define":
            words[name] = text
        else:
            users.append(f"{kind} {name} {text}")
    return "\n".join(users) + "\n"


def given(environ: Mapping[str, str], variable: str) -> str:
    """The value in the environment, or "". Raises Wrong if it is not a valid secret."""
    value = environ.get(variable, "")
    if value and not FORM.fullmatch(value):
        raise Wrong(f"{variable}=(secret) is invalid: expected {LEAST} to 200 visible ASCII characters without spaces")
    return value


def password() -> str:
    """A random password of 128 bits."""
    return secrets.token_urlsafe(16)


def api_key() -> str:
    """An API key in the format of `rolecall key new`."""
    return f"rk_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def read(path: Path) -> str:
    """The content of ``path``, or "" if it does not exist."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Wrong(other_user(path, error)) from error


def write(path: Path, text: str) -> None:
    """Write atomically, readable only by this user."""
    part = path.with_suffix(".part")
    try:
        if path.exists() and path.read_text() == text:
            return
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as out:
            out.write(text)
        part.replace(path)
    except OSError as error:
        raise Wrong(other_user(path, error)) from error


def other_user(path: Path, error: OSError) -> str:
    """Error text for a file in a volume that cannot be accessed, with the likely reason."""
    return (
        f"{path}: {error.strerror}: it was made by another user than {os.getuid()}; set ROLECALL_UID and ROLECALL_GID "
        "in .env to their previous values (to change them, see docs/deploy.md)"
    )


if __name__ == "__main__":
    sys.exit(main())
