"""Makes what the services need before they can start: passwords, keys and the server's list of users.

Runs once per `docker compose up` and changes nothing that is there, unless the environment gives another value. Each
service has a volume of its own below MADE and sees no other's. Ends with status 1 and one line for each thing wrong.
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
"""Characters of a secret: 128 bits, six to each."""
FORM = re.compile(rf"[!-~]{{{LEAST},200}}")
USERS = ("worker", "front", "telegram", "operator")
WORDS = re.compile(r"<([a-z ]+)>")
PROVIDERS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "GOOGLE_API_KEY", "GEMINI_API_KEY", "OLLAMA_URL", "OLLAMA_HOST")


class Wrong(Exception):
    """Something that only a person can put right; the text says what and how."""


def main(environ: Mapping[str, str] = os.environ, made: Path = MADE, log: Path = LOG) -> int:
    """Make it all, and say where it is. The exit status."""
    try:
        check_log(log)
        fresh = make(environ, made)
    except Wrong as wrong:
        print(f"init: {wrong}", file=sys.stderr)
        return 1
    print("init: keys and passwords are there, each in the volume of the service that needs it")
    print("init: the API key:  docker compose exec front cat /run/secrets/http-key")
    if fresh:
        print(f"init: new: {', '.join(fresh)}; services that run already get it by:  docker compose restart")
    if not any(environ.get(name) for name in PROVIDERS):
        print(
            "init: .env names no provider of models. For a small local one:  docker compose --profile local up -d\n"
            "init: else put a key such as OPENAI_API_KEY into .env and name the model in config.py (docs/deploy.md)"
        )
    return 0


def check_log(log: Path) -> None:
    """Raise Wrong when the transcripts could not be written."""
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
    """Everything, below ``made``; returns the names of what is new or another than before. Raises Wrong."""
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
    write(made / "valkey" / "users.acl", rendered(TEMPLATE.read_text(), passwords))
    return fresh


def rendered(template: str, passwords: Mapping[str, str]) -> str:
    """The server's list of users."""
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
    """What the environment gives, or nothing. Raises Wrong for what is no secret."""
    value = environ.get(variable, "")
    if value and not FORM.fullmatch(value):
        raise Wrong(f"{variable}=(secret): {LEAST} to 200 letters, digits and signs without blanks are allowed")
    return value


def password() -> str:
    """128 bits."""
    return secrets.token_urlsafe(16)


def api_key() -> str:
    """As `rolecall key new` makes them."""
    return f"rk_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def read(path: Path) -> str:
    """What is there, or nothing."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Wrong(other_user(path, error)) from error


def write(path: Path, text: str) -> None:
    """Whole or not at all, for this user alone."""
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
    """The likely reason why a file in a volume is out of reach."""
    return (
        f"{path}: {error.strerror}: it was made by another user than {os.getuid()}; put ROLECALL_UID and ROLECALL_GID "
        "of that time back into .env (docs/deploy.md tells how to change them)"
    )


if __name__ == "__main__":
    sys.exit(main())
