"""How other servers are reached: addresses, proxies, certificates. And what an image is."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import certifi
import httpx
import httpx2
import pytest

from rolecall.errors import ConfigError
from rolecall.models.stream import image_type
from rolecall.transport.http_client import address, client_options, is_loopback, tls_context
from rolecall.transport.proxy import proxy_of
from tests.listening import listening

ELSEWHERE = "http://models.example/v1"


class Proxy:
    """A forward proxy that answers every request itself, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.where = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(" ".join(head.decode().split(" ")[:2]))
        refused = b"HTTP/1.1 502 X" if head.startswith(b"CONNECT") else b"HTTP/1.1 200 X"
        writer.write(refused + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
        await writer.drain()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    async with listening(proxy.serve) as port:
        proxy.where = f"127.0.0.1:{port}"
        yield proxy


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert isinstance(request.param, ModuleType)
    return request.param


async def get(http: ModuleType, url: str, proxy: str) -> str:
    async with http.AsyncClient(timeout=2, **client_options(url, proxy, http)) as client:
        answer = await client.get(url)
        return str(answer.text)


async def test_a_proxy_that_is_named_is_used(http: ModuleType, proxy: Proxy) -> None:
    assert await get(http, ELSEWHERE, proxy_of(proxy.where)) == "OK"
    assert proxy.asked == [f"GET {ELSEWHERE}"]


async def test_a_proxy_carries_encrypted_calls_by_a_tunnel(http: ModuleType, proxy: Proxy) -> None:
    with pytest.raises(http.ProxyError):
        await get(http, "https://models.example/v1", proxy_of(proxy.where))
    assert proxy.asked == ["CONNECT models.example:443"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_system_takes_the_proxy_of_the_environment(
    http: ModuleType, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://{proxy.where}")
    assert await get(http, ELSEWHERE, proxy_of("system")) == "OK"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_no_goes_past_the_proxy_of_the_environment(
    http: ModuleType, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://{proxy.where}")
    with pytest.raises(http.ConnectError):
        await get(http, ELSEWHERE.replace("models.example", "models.invalid"), proxy_of("no"))
    assert not [asked for asked in proxy.asked if "models" in asked]


@pytest.mark.parametrize("setting", ["SYSTEM", "127.0.0.1:9"])
async def test_a_server_on_this_machine_is_reached_past_every_proxy(
    http: ModuleType, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert await get(http, f"http://{proxy.where}/v1", proxy_of(setting)) == "OK"
    assert proxy.asked == ["GET /v1"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", ELSEWHERE])
async def test_a_proxy_of_the_environment_that_cannot_be_used_is_no_hindrance_without_it(
    http: ModuleType, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:9")
    async with http.AsyncClient(**client_options(url, "NO", http)):
        pass


def authorities(http: ModuleType, proxy: str) -> int:
    context = client_options("https://models.example/v1", proxy, http)["verify"]
    assert isinstance(context, ssl.SSLContext)
    return context.cert_store_stats()["x509_ca"]


@pytest.mark.parametrize("setting", ["SYSTEM", "NO", "http://127.0.0.1:9"])
def test_certificates_that_the_environment_names_count_with_any_proxy(
    http: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    named = tmp_path / "own.pem"
    named.write_bytes(Path(certifi.where()).read_bytes().partition(b"-----END CERTIFICATE-----")[0])
    with named.open("ab") as file:
        file.write(b"-----END CERTIFICATE-----\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(named))
    assert authorities(http, setting) == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    tls_context.cache_clear()
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE or SSL_CERT_DIR in the environment: .*No such file"):
        authorities(http, setting)


def test_all_clients_share_the_authorities_that_the_machine_trusts(http: ModuleType) -> None:
    one = client_options("https://models.example/v1", "NO", http)["verify"]
    assert client_options("https://other.example/v1", "SYSTEM", http)["verify"] is one
    assert one.verify_mode == ssl.CERT_REQUIRED and one.check_hostname


@pytest.mark.parametrize(
    ("setting", "means"),
    [
        ("system", "SYSTEM"),
        ("No", "NO"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("https://u:p@proxy.example:1", "https://u:p@proxy.example:1"),
    ],
)
def test_a_proxy_is_the_system_s_none_or_a_host_and_port(setting: str, means: str) -> None:
    assert proxy_of(setting) == means


BAD = {"ALL_PROXY": ["socks4://h:1", "http://h:port", "http://[::1", "ftp://h", "http://u:hunter2@"]}
BAD["NO_PROXY"] = ["localhost,::1/128", "[::1]", "fd00::/8", "x:y", "é.example"]


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_proxy_variable_that_no_client_can_use_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^{variable} ") as caught:
        proxy_of("SYSTEM", ELSEWHERE)
    assert "hunter2" not in str(caught.value)
    assert proxy_of("SYSTEM", "http://127.0.0.1:1") == "SYSTEM"
    assert proxy_of("NO", ELSEWHERE) == "NO"


@pytest.mark.parametrize(
    "value", ["localhost,127.0.0.1", "::1,.example.org,*.x,*,10.0.0.0/8", "host:80", "", " a , b "]
)
def test_what_the_clients_take_of_no_proxy_is_taken(
    http: ModuleType, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", value)
    assert proxy_of("SYSTEM", ELSEWHERE) == "SYSTEM"
    http.Client(verify=False).close()


def test_a_socks_proxy_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("socksio") is not None:
        pytest.skip("socksio is installed")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError, match="ALL_PROXY is a SOCKS proxy, which needs: pip install socksio"):
        proxy_of("SYSTEM", ELSEWHERE)


@pytest.mark.parametrize("setting", ["", "nonsense", "host:port", "user:hunter2@host", "host:70000"])
def test_a_bad_proxy_is_refused_without_showing_it(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"^PROXY is invalid: expected SYSTEM, NO or host:port$"):
        proxy_of(setting)


def test_an_address_loses_the_slash_at_its_end() -> None:
    assert address("X_URL", "http://127.0.0.1:8080/v1/") == "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_a_bad_address_is_refused_with_its_name(url: str) -> None:
    with pytest.raises(ConfigError, match=r"X_URL=.*http://127"):
        address("X_URL", url)


def test_a_password_in_a_bad_address_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        address("X_URL", "htp://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_what_is_this_machine_is_known() -> None:
    assert [is_loopback(f"http://{host}/") for host in ("localhost", "127.9.9.9", "[::1]")] == [True] * 3
    assert not [host for host in ("example.com", "10.0.0.1", "localhost.example") if is_loopback(f"http://{host}/")]


def test_an_image_is_known_by_its_first_bytes() -> None:
    starts = (b"\x89PNG..", b"\xff\xd8\xff..", b"GIF89a", b"RIFF....WEBP", b"?")
    assert [image_type(start).removeprefix("image/") for start in starts] == ["png", "jpeg", "gif", "webp", "jpeg"]
