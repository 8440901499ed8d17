"""Images that a message names by an https URL, fetched from public addresses only."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import Collection, MutableMapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import IO, TYPE_CHECKING

from rolecall.bus.blobs import image_type
from rolecall.frontends.http.body import IN_MEMORY, Upload
from rolecall.frontends.http.intake import MAX_IMAGES
from rolecall.frontends.http.problems import Problem, text
from rolecall.settings import Settings
from rolecall.transport.http_client import client_options
from rolecall.version import __version__

if TYPE_CHECKING:
    import httpx2

SCHEME = "https://"
FETCH_SECONDS = 10.0
"""Time limit for all images of a request."""
MAX_REDIRECTS = 3
NAT64 = IPv6Network("64:ff9b::/96")
UNICAST = IPv6Network("2000::/3")
"""The global unicast addresses; outside of it are forms such as ::127.0.0.1."""


async def fetch_images(
    urls: Collection[str], settings: Settings, uploads: MutableMapping[str, Upload]
) -> dict[str, str]:
    """Fetch the images at those of ``urls`` that are https, if HTTP_IMAGE_URLS allows it, and add them to ``uploads``;
    returns their names there by URL. Raises Problem."""
    wanted = {url for url in urls if url.startswith(SCHEME)} if settings.http_image_urls else set()
    if len(wanted) > MAX_IMAGES:
        raise Problem(400, text("too_many_images", count=MAX_IMAGES), param="images")
    if not wanted:
        return {}
    try:
        async with asyncio.timeout(FETCH_SECONDS), asyncio.TaskGroup() as group:
            fetching = {url: group.create_task(_fetch(url, settings, uploads)) for url in wanted}
    except TimeoutError:
        raise _failed("the images", f"no answer within {FETCH_SECONDS:g} s") from None
    except BaseExceptionGroup as errors:
        raise next((error for error in errors.exceptions if isinstance(error, Problem)), errors) from None
    return {url: task.result() for url, task in fetching.items()}


def is_public(address: str) -> bool:
    """Whether ``address`` is of the public internet, and no IPv6 form of an IPv4 address that is not."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        teredo = found.teredo[1] if found.teredo else None
        low = IPv4Address(found.packed[-4:]) if found in NAT64 else None
        inner = found.ipv4_mapped or found.sixtofour or teredo or low
        if inner is None and found not in UNICAST:
            return False
        found = inner or found
    return found.is_global and not found.is_multicast


async def _fetch(given: str, settings: Settings, uploads: MutableMapping[str, Upload]) -> str:
    """The name in ``uploads`` of the image at ``given``. Every redirect is checked like the first URL."""
    import httpx2

    try:
        url = httpx2.URL(given)
        # No proxy: it would resolve the name itself, maybe to another address than the one that was checked.
        async with httpx2.AsyncClient(timeout=FETCH_SECONDS, **client_options(given, "NO", httpx2)) as client:
            for _ in range(MAX_REDIRECTS + 1):
                response = await _sent(client, url, settings)
                if response.has_redirect_location:
                    await response.aclose()
                    url = url.join(response.headers["location"])
                    continue
                try:
                    return await _read(response, url.host, settings.blob_megabytes, uploads)
                finally:
                    await response.aclose()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise _failed(given[:200], str(error) or type(error).__name__) from None
    raise _failed(url.host, f"more than {MAX_REDIRECTS} redirects")


async def _sent(client: httpx2.AsyncClient, url: httpx2.URL, settings: Settings) -> httpx2.Response:
    """The response to a request that goes to an address that was checked, whatever the name resolves to later."""
    import httpx2

    if url.scheme != "https":
        raise _failed(url.host, "expected an https URL")
    host = url.raw_host.decode("ascii")
    headers = {"host": url.netloc.decode("ascii"), "accept": "image/*", "accept-encoding": "identity"}
    problem: Exception | None = None
    for address in await _addresses(host, url.port or 443):
        request = client.build_request(
            "GET", url.copy_with(host=address, username=None, password=None),
            headers={**headers, "user-agent": f"rolecall/{__version__}"}, extensions={"sni_hostname": host},
        )  # fmt: skip
        try:
            return await client.send(request, stream=True, follow_redirects=False, auth=None)
        except httpx2.ConnectError as error:
            problem = error
    raise _failed(host, str(problem))


async def _addresses(host: str, port: int) -> list[str]:
    """The addresses of ``host``, IPv4 first. Raises Problem if it has none, or one that is not public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _failed(host, "no such host") from None
    addresses = sorted({str(entry[4][0]) for entry in found}, key=lambda address: ":" in address)
    if not addresses or not all(is_public(address) for address in addresses):
        raise Problem(400, text("private_image_url", host=host[:200]), "invalid_image_url", param="images")
    return addresses


async def _read(response: httpx2.Response, host: str, megabytes: int, uploads: MutableMapping[str, Upload]) -> str:
    if response.status_code != 200:
        raise _failed(host, f"HTTP {response.status_code}")
    file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # close_uploads closes it
    name, kept, size = f"upload:{secrets.token_hex(16)}", Upload("", file), 0
    uploads[name] = kept
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > megabytes * 1024**2:
            raise Problem(413, text("image_too_large", limit=megabytes), "image_too_large", param="images")
        file.write(piece)
    file.seek(0)
    if not image_type(file.read(12)):
        raise _failed(host, text("no_image"))
    return name


def _failed(what: str, reason: str) -> Problem:
    return Problem(400, text("bad_image_url", what=what, reason=reason), "invalid_image_url", param="images")
