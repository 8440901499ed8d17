"""Who may come in: keys, operators' keys, logins and their tokens; and nobody at all where no key was made."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from rolecall.bus.access_keys import create_key, list_keys, revoke_all_keys, revoke_key
from rolecall.bus.schedule.schedules import schedules_of
from rolecall.errors import ConfigError, RolecallError
from rolecall.frontends.http.auth import COOKIE, CSRF_HEADER, KEY_FORM, NEW_SECONDS, Authenticator
from rolecall.frontends.http.body import BODY_BYTES, LARGE_AT_ONCE
from rolecall.frontends.texts import section
from rolecall.redis import keys as names
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, ROLES) as running:
        yield running


async def new_key(deployment: Deployment, name: str, *, admin: bool = False) -> str:
    _, secret = await create_key(deployment.session.bus, name, admin=admin)
    return secret


def bearing(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_without_any_key_this_machine_alone_is_let_in(deployment: Deployment) -> None:
    application = deployment.session.application
    async with serving(application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/info")).status_code == 200
    async with serving(application, "0.0.0.0") as url, httpx2.AsyncClient(base_url=url) as client:
        refused = await client.get("/info")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health/live")).status_code == 200


async def test_with_a_key_everyone_needs_one(deployment: Deployment) -> None:
    secret = await new_key(deployment, "ann")
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/info", headers=bearing(secret))).status_code == 200
        altered = secret[:-1] + ("A" if secret[-1] != "A" else "B")
        for wrong in ("x", altered, secret + "x", "rk_00000000_" + "x" * 43, "ключ".encode()):
            header = wrong if isinstance(wrong, bytes) else wrong.encode()
            answer = await client.get("/info", headers={b"authorization": b"Bearer " + header})
            assert answer.status_code == 401, wrong


async def test_who_sends_a_key_that_is_not_known_is_told_another_reason_than_who_sends_none(
    deployment: Deployment,
) -> None:
    await new_key(deployment, "ann")
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        for given, key in ((bearing("rk_revoked"), "unknown_key"), ({}, "key_required"),
                           ({"authorization": "rk_without_bearer"}, "key_required")):  # fmt: skip
            answer = (await client.get("/info", headers=given)).json()
            assert (answer["detail"], answer["code"]) == (section("http")[key], "invalid_api_key")


async def test_what_is_the_operators_needs_an_operators_key(deployment: Deployment) -> None:
    secret = await new_key(deployment, "ann")
    admin = await new_key(deployment, "root", admin=True)
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/agents", headers=bearing(secret))).status_code == 403
        assert (await client.get("/agents", headers=bearing(admin))).status_code == 200


async def test_the_server_does_not_know_the_key_itself(deployment: Deployment) -> None:
    secret = await new_key(deployment, "ann")
    found = await deployment.session.server.call("HGETALL", names.API_KEYS)
    assert secret.encode() not in b"".join(found)
    assert secret.split("_", 2)[2].encode() not in b"".join(found)


async def test_a_revoked_key_is_refused_and_its_logins_with_it(deployment: Deployment) -> None:
    bus = deployment.session.bus
    key, secret = await create_key(bus, "ann")
    login = await Authenticator(bus).log_in(secret)
    assert login is not None
    await revoke_key(bus, key.id)
    assert await Authenticator(bus).find(secret) is None
    assert await Authenticator(bus).logged_in(login[1]) is None
    with pytest.raises(RolecallError, match="there is no key"):
        await revoke_key(bus, key.id)


async def test_the_first_key_is_its_owners_from_its_first_request(deployment: Deployment) -> None:
    auth = Authenticator(deployment.session.bus, open_locally=True)
    assert await auth.open()
    secret = await new_key(deployment, "ann")
    found = await auth.find(secret)
    assert found is not None and found.name == "ann"
    assert not await auth.open()


async def test_strangers_who_guess_keys_cost_the_bus_next_to_nothing(deployment: Deployment) -> None:
    auth, bus = Authenticator(deployment.session.bus), deployment.session.bus

    async def looked_up() -> int:
        found = re.search(rb"cmdstat_hgetall:calls=(\d+)", await bus.server.call("INFO", "commandstats"))
        return int(found[1]) if found else 0

    await auth.find("rk_0123abcd_" + "g" * 43)
    before, began = await looked_up(), time.monotonic()
    for _ in range(200):
        assert await auth.find("rk_0123abcd_" + "g" * 43) is None
    assert await looked_up() - before <= 1 + (time.monotonic() - began) / NEW_SECONDS + 10  # the deployment's own


async def test_a_login_reads_with_its_cookie_and_changes_only_with_its_token(deployment: Deployment) -> None:
    secret = await new_key(deployment, "root", admin=True)
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.post("/login", json={"key": "rk_wrong"})).status_code == 401
        answer = await client.post("/login", json={"key": secret})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert (await client.get("/info")).status_code == 200
        for forged in ("", "x", answer.json()["csrf"] + "x"):
            assert (await client.delete("/dead/1-1", headers={CSRF_HEADER: forged})).status_code == 403
        token = {CSRF_HEADER: answer.json()["csrf"]}
        assert (await client.delete("/dead/1-1", headers=token)).status_code == 404
        assert (await client.post("/logout", headers=token)).status_code == 204
        client.cookies.clear()
        stale = {"cookie": answer.headers["set-cookie"].split(";")[0]}
        assert stale["cookie"].startswith(COOKIE)
        assert (await client.get("/info", headers=stale)).status_code == 401


async def test_a_key_of_the_settings_is_an_operators_beside_the_others(deployment: Deployment) -> None:
    given = "rk_0123abcd_" + "g" * 43
    settings = deployment.session.application.settings.model_copy(update={"http_key": SecretStr(given)})
    application = replace(deployment.session.application, settings=settings)
    made = await new_key(deployment, "ann")
    async with serving(application, "0.0.0.0") as url, httpx2.AsyncClient(base_url=url) as client:
        for secret, status in ((given, 200), (made, 403), (given[:-1] + "h", 401)):
            assert (await client.get("/agents", headers=bearing(secret))).status_code == status
    logged_in = Authenticator(deployment.session.bus, given=given)
    login = await logged_in.log_in(given)
    assert login is not None and await logged_in.logged_in(login[1]) is not None


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 61])
async def test_a_key_has_a_name_of_printable_characters_wherever_it_is_named(deployment: Deployment, name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 60 printable characters"):
        await new_key(deployment, name)
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/web/people/keys", json={"name": name})
        assert answer.status_code == 422 and "expected 1 to 60 printable characters" in answer.json()["detail"]
    assert await list_keys(deployment.session.bus) == []


FOREIGN = [
    {"host": "assistant.example"},
    {"host": "192.0.2.7"},
    {"forwarded": "for=192.0.2.1"},
    {"x-forwarded-for": "192.0.2.1"},
    {"X-Forwarded-Host": "assistant.example"},
    {"x-forwarded-proto": "https"},
    {"x-real-ip": "192.0.2.1"},
    {"via": "1.1 proxy"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_what_comes_through_a_proxy_is_never_local(deployment: Deployment, headers: dict[str, str]) -> None:
    settings = deployment.session.application.settings.model_copy(update={"http_hosts": "*"})
    application = replace(deployment.session.application, settings=settings)
    async with serving(application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/dead")).status_code == 200
        for path in ("/dead", "/metrics", "/conversations", "/info", "/v1/models"):
            assert (await client.get(path, headers=headers)).status_code == 401, path
        assert (await client.get("/", headers=headers)).headers["location"].startswith("/web/login")


async def test_what_comes_through_an_nginx_that_tells_of_no_client_is_never_local(deployment: Deployment) -> None:
    async with serving(deployment.session.application) as url:
        for version, status in (("1.0", 401), ("1.1", 200)):
            reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
            host = urlsplit(url).netloc
            writer.write(f"GET /info HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.read()).split()[1] == str(status).encode()
            writer.close()


async def status_without_a_key(deployment: Deployment) -> int:
    """What a stranger on this machine gets from a process that has just started."""
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        return (await client.get("/dead")).status_code


async def test_once_there_was_a_key_the_last_revocation_lets_nobody_in(deployment: Deployment) -> None:
    bus = deployment.session.bus
    key, _ = await create_key(bus, "root", admin=True)
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/dead")).status_code == 401
        await revoke_key(bus, key.id)
        auth = Authenticator(bus, open_locally=True)
        assert not await auth.open()
        assert (await client.get("/dead")).status_code == 401
    assert await status_without_a_key(deployment) == 401


async def test_a_server_that_lost_its_data_lets_nobody_in(deployment: Deployment) -> None:
    bus, server = deployment.session.bus, deployment.session.server
    await create_key(bus, "root", admin=True)
    assert await status_without_a_key(deployment) == 401
    await server.call("DEL", names.API_KEYS, names.META)
    assert await status_without_a_key(deployment) == 401
    # This process has told the bus, so that one on another machine, without the file, learns it too.
    assert not await Authenticator(bus, open_locally=True).open()


async def test_keys_of_an_earlier_version_close_the_server_as_well(deployment: Deployment) -> None:
    bus, server = deployment.session.bus, deployment.session.server
    key, _ = await create_key(bus, "root", admin=True)
    await server.call("HDEL", names.META, "keys")
    assert not await Authenticator(bus, open_locally=True).open()
    await server.call("HDEL", names.API_KEYS, key.id)  # as an earlier version revokes it
    assert not await Authenticator(bus, open_locally=True).open()


async def test_an_entry_that_is_no_key_lets_nobody_in(deployment: Deployment) -> None:
    await deployment.session.server.call("HSET", names.API_KEYS, "torn", '{"id":')
    assert await status_without_a_key(deployment) == 401


async def test_a_key_that_left_the_settings_leaves_the_server_closed(deployment: Deployment, tmp_path: Path) -> None:
    bus, memory = deployment.session.bus, tmp_path / "remembered"
    assert not await Authenticator(bus, open_locally=True, given="k" * 22, memory=memory).open()
    assert not await Authenticator(bus, open_locally=True, memory=memory).open()


async def test_only_a_reset_opens_the_server_again(deployment: Deployment) -> None:
    bus = deployment.session.bus
    await create_key(bus, "root", admin=True)
    assert await status_without_a_key(deployment) == 401
    await revoke_all_keys(bus)
    assert await status_without_a_key(deployment) == 200
    assert await status_without_a_key(deployment) == 200


async def test_revoking_a_key_that_does_not_exist_closes_no_server(deployment: Deployment) -> None:
    bus = deployment.session.bus
    for _before_any_key_and_after_a_reset in range(2):
        with pytest.raises(RolecallError, match="there is no key 'abc'"):
            await revoke_key(bus, "abc")
        assert await Authenticator(bus, open_locally=True).open()
        await create_key(bus, "root", admin=True)
        await revoke_all_keys(bus)


async def test_a_login_ends_when_the_key_of_the_settings_is_replaced(deployment: Deployment) -> None:
    bus = deployment.session.bus
    login = await Authenticator(bus, given="a" * 22).log_in("a" * 22)
    assert login is not None
    assert await Authenticator(bus, given="a" * 22).logged_in(login[1]) is not None
    assert await Authenticator(bus, given="b" * 22).logged_in(login[1]) is None


async def test_a_key_has_one_rate_however_its_requests_show_it(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES, http_requests_per_minute=200) as running,
        serving(running.session.application) as url,
        httpx2.AsyncClient(base_url=url) as client,
    ):
        secret, other = await new_key(running, "ann"), await new_key(running, "bob")
        cookies = [{COOKIE: (await client.post("/login", json={"key": secret})).cookies[COOKIE]} for _ in range(2)]
        client.cookies.clear()
        shown = [
            {"authorization": f"Bearer {secret}"}, {"authorization": f"bEARER {secret}"},
            *({"authorization": "Basic x", "cookie": f"{COOKIE}={cookie[COOKIE]}"} for cookie in cookies),
        ]  # fmt: skip
        answers = [(await client.get("/info", headers=shown[n % 4])).status_code for n in range(60)]
        assert set(answers) == {200, 429} and answers.count(200) < 40
        assert (await client.get("/info", headers=bearing(other))).status_code == 200


async def test_the_slow_uploads_of_one_key_leave_room_for_those_of_others(deployment: Deployment) -> None:
    slow, quick = await new_key(deployment, "ann"), await new_key(deployment, "bob")
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        head = (
            f"POST /chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {slow}\r\nContent-Length: 9999999\r\n\r\n"
        )
        host, port = urlsplit(url).hostname, urlsplit(url).port
        uploads = [await asyncio.open_connection(host, port) for _ in range(LARGE_AT_ONCE)]
        for _, writer in uploads:
            writer.write(f"{head}Content-Length: 9999999\r\n\r\n".encode() + b" " * (BODY_BYTES + 1))
            await writer.drain()
        body = json.dumps({"text": "Hello"}).encode() + b" " * (BODY_BYTES + 1)
        headers = {**bearing(quick), "content-type": "application/json"}
        assert (await client.post("/chat", content=body, headers=headers)).status_code == 200
        assert not any(reader.at_eof() for reader, _ in uploads)
        for _, writer in uploads:
            writer.close()


async def test_a_revoked_key_leaves_no_stream_no_reminder_and_no_shared_link(deployment: Deployment) -> None:
    bus, secret = deployment.session.bus, await new_key(deployment, "ann", admin=True)
    key, _ = KEY_FORM.fullmatch(secret), await new_key(deployment, "bob")
    assert key is not None
    async with (
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url, headers=bearing(secret), timeout=20) as client,
    ):
        reminder = {"conversation_id": "c", "text": "tea", "when": "every day at 9"}
        assert (await client.post("/chat/reminders", json=reminder)).status_code == 201
        assert (await client.post("/chat", json={"text": "Hello", "conversation_id": "c"})).status_code == 200
        link = (await client.post("/web/chat/c", json={"shared": True})).json()["shared"]
        assert (await client.get(f"{link}/thread", headers={"authorization": ""})).status_code == 200
        async with client.stream("GET", "/chat/notices/c") as notices, client.stream("GET", "/web/now/events") as now:
            assert (notices.status_code, now.status_code) == (200, 200)
            await revoke_key(bus, key[1])
            async with asyncio.timeout(20):
                for stream in (notices, now):
                    assert [part async for part in stream.aiter_raw()]
        assert (await client.get(f"{link}/thread")).status_code == 404
    assert not await schedules_of(bus, f"http:{key[1]}:c")


async def test_what_was_followed_without_a_key_ends_with_the_first_key(deployment: Deployment) -> None:
    async with (
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
        client.stream("GET", "/web/now/events") as now,
    ):
        assert now.status_code == 200
        await new_key(deployment, "ann")
        async with asyncio.timeout(20):
            assert [part async for part in now.aiter_raw()]
