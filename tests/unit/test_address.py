"""The server's address as people write it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from pydantic import SecretStr

from rolecall.errors import ConfigError, ServerError
from rolecall.redis.address import ServerAddress, checked_host, checked_url, tls_advice, without_secrets
from rolecall.redis.server import RedisServer
from rolecall.session import configured_url
from rolecall.settings import Settings
from tests.certificates import Authority

HOST = "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    "url",
    [
        HOST, "redis://host", "redis://host/", "redis://[::1]:6379", "redis://user:p%40ss%2F@host:1/15", "redis://u:a@b@h",
        "valkey://host", "valkeys://host/2?ssl_ca_certs=/ca.pem", "redis+sentinel://user:pw@h1,h2:1,[::1]/mymaster/3",
        "rediss+sentinel://h1/name?ssl_ca_certs=/ca.pem&sentinel_password=p", "redis+cluster://u:p@h1,h2:7000,h3",
        "valkeys+cluster://h1/0?ssl_certfile=/c&ssl_keyfile=/k", "valkey+sentinel://h1/name",
        "rediss://host?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem", "unix:///run/v@lkey.sock?db=1&password=x",
    ],
)  # fmt: skip
def test_what_redis_takes_is_taken_as_it_stands(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"{HOST}?family=0", "option family, which is unknown"),
        (f"{HOST}?dB=1", "(not shown), which is unknown"),
        (f"{HOST}?db=one", "in the option db"),
        ("rediss://host?ssl_cert_req=none", "did you mean ssl_cert_reqs?"),
        ("rediss://host?ssl_cert_reqs=maybe", "REDIS_URL=(secret) is invalid"),
        (f"{HOST}?ssl_ca_certs=/ca.pem", "option ssl_ca_certs"),
        ("redis://host/zero", "number of a database"),
        ("redis://host:port", "REDIS_URL=(secret) is invalid"),
        ("redis://::1:6379", "REDIS_URL=(secret) is invalid"),
        ("http://host", "expected redis://"),
        ("host:6379", "expected redis://"),
        ("unix://", "expected redis://"),
        (f"{HOST}#1", "expected redis://"),
        ("redis+sentinel://h1,h2", "name of the primary"),
        ("redis+sentinel://h1,h2/name/x", "name of the primary"),
        ("redis+sentinel://h1,,h2/name", "expected redis://"),
        ("redis+sentinel:///name", "expected redis://"),
        ("redis+cluster://h1:0", "expected redis://"),
        ("redis+cluster://h1/1", "a cluster has no databases but 0"),
        ("redis+cluster://h1?db=2", "a cluster has no databases but 0"),
        ("redis+cluster://h1?ssl_ca_certs=/c", "option ssl_ca_certs"),
        ("redis+ring://h1", "expected redis://"),
        ("unix+sentinel:///s", "expected redis://"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(url: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"^REDIS_URL") as caught:
        checked_url(url)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "password", ["hun/ter2", "hun#ter2", "hun?ter2", "12/ter2", "hun?a=ter2", "h@/ter2", "#ter2", "?ter2="]
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_password_that_is_not_encoded_gets_the_hint_and_is_not_shown(scheme: str, password: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        checked_url(f"{scheme}://user:{password}@host:6379/0")
    assert "ter2" not in str(caught.value) and "hun" not in str(caught.value)


def test_options_that_are_set_here_are_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert checked_url(f"{HOST}?socket_timeout=3&db=2&decode_responses=1") == f"{HOST}?db=2"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "use REDIS_SOCKET_TIMEOUT" in caplog.messages[0]


def test_an_address_of_several_hosts_is_taken_apart() -> None:
    found = ServerAddress.of(
        "rediss+sentinel://us%40er:p%2Fw@h1,[::1]:7/my%20name/3?sentinel_password=s&ssl_ca_certs=/c"
    )
    assert (found.kind, found.hosts, found.name) == ("sentinel", (("h1", 26_379), ("::1", 7)), "my name")
    assert (found.sentinel_password, found.sentinel_username) == ("s", None)
    assert found.single == "rediss://us%40er:p%2Fw@h1:26379/3?ssl_ca_certs=%2Fc" and found.secure
    assert ServerAddress.of("valkey+cluster://h1,h2:7000").hosts == (("h1", 6379), ("h2", 7000))
    assert ServerAddress.of("valkey://h1/2").single == "redis://h1/2"


@pytest.mark.parametrize("kind", ["redis+sentinel", "rediss+cluster"])
def test_a_password_before_several_hosts_is_not_shown(kind: str) -> None:
    url = f"{kind}://user:hunter2@h1,h2/name?sentinel_password=ter2"
    assert "ter2" not in without_secrets(url) and "h1,h2" in without_secrets(url)
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        checked_url(f"{kind}://user:hun/ter2@h1,h2/name")
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("hosts", ["h1", "h1,[::1]:7", "[::1],h2:1"])
def test_the_password_before_any_hosts_is_kept_out_of_what_leaves_the_process(hosts: str) -> None:
    settings = Settings(redis_url=SecretStr(f"redis+sentinel://ada:hunter%2Ftwo@{hosts}/name"))
    assert settings.redacted("hunter%2Ftwo or hunter/two") == "••• or •••"


def test_messages_have_neither_user_nor_password() -> None:
    assert without_secrets("redis://user:pass@host:1/0?password=other&db=1") == "redis://host:1/0?db=1"
    assert without_secrets("unix://:pass@/run/s") == "unix:///run/s"


@pytest.mark.parametrize(("host", "written"), [("host", "host"), ("::1", "[::1]"), ("[::1]", "[::1]"), (" h ", "h")])
def test_a_host_is_written_as_it_stands_in_a_url(host: str, written: str) -> None:
    assert checked_host(host) == written


@pytest.mark.parametrize("host", ["", "host:6379", "cafe:6379", "redis://host", "a b", "u:p@host"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"REDIS_HOST.*the port is REDIS_PORT") as caught:
        checked_host(host)
    assert "p@" not in str(caught.value)


async def test_a_connection_that_cannot_even_be_made_fails_what_waits_for_it() -> None:
    server = RedisServer(f"{HOST}?family=0")  # not checked: whatever redis-py does, nobody waits for ever
    with pytest.raises(ServerError):
        async with asyncio.timeout(2):
            await server.call("PING")
    await server.aclose()


def test_a_file_of_tls_that_cannot_be_used_is_named_with_its_option_before_anything_connects(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (certificate, key), (_, other) = authority.sign("me"), authority.sign("other")
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    mine = f"ssl_certfile={certificate}&ssl_keyfile="
    assert configured(f"ssl_ca_certs={authority.certificate}&{mine}{key}")
    for options, named in (
        ("ssl_ca_certs=/nope.pem", "ssl_ca_certs=/nope.pem cannot be read: No such file or directory"),
        (f"ssl_ca_certs={tmp_path}", f"ssl_ca_certs={tmp_path} cannot be read: Is a directory"),
        (f"ssl_ca_certs={junk}", f"ssl_ca_certs={junk} is invalid: expected a PEM certificate"),
        ("ssl_ca_path=/nope", "ssl_ca_path=/nope cannot be read: No such file or directory"),
        (f"ssl_certfile=/nope&ssl_keyfile={key}", "ssl_certfile=/nope cannot be read"),
        (f"{mine}/nope", "ssl_keyfile=/nope cannot be read"),
        (f"{mine}{other}", f"ssl_certfile={certificate} is invalid: expected a PEM certificate, and its key"),
        (f"{mine}{junk}", f"ssl_certfile={certificate} is invalid: expected a PEM certificate, and its key"),
        (f"ssl_keyfile={key}", "set ssl_certfile too"),
    ):
        with pytest.raises(ConfigError) as caught:
            configured(options)
        assert str(caught.value).startswith("REDIS_URL: ") and named in str(caught.value)


def configured(options: str) -> str | None:
    return configured_url(Settings(redis_url=SecretStr(f"rediss://user:hunter2@127.0.0.1:1?{options}")))


@pytest.mark.parametrize(
    ("why", "advised"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "a new certificate"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: IP address mismatch", "as its certificate does"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer", "set ssl_ca_certs"),
    ],
)
def test_what_is_wrong_with_a_certificate_decides_what_helps(why: str, advised: str) -> None:
    assert advised in tls_advice("rediss://h", why)
