"""Embeddings, transcriptions and files, as OpenAI's own client and a real application use them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import zipfile
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from typing import Any

import docx
import httpx2
import openai
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from agents.embedding import EmbeddingAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from agents.voice import VoiceAgent
from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.access_keys import create_key
from rolecall.bus.foreign_text import as_data
from rolecall.frontends.http import image_urls
from rolecall.frontends.http.image_urls import is_public
from rolecall.frontends.http.openai.uploaded_files import FILES_TIMES
from rolecall.frontends.sockets import listen
from rolecall.frontends.uvicorn_server import uvicorn_server
from tests.certificates import Authority
from tests.deployment import Deployment, deployed
from tests.http.server import open_again, serving
from tests.unit.test_telegram_documents import locked, pdf
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TellAgent(Agent):
    """Tells what it was given."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        told = {"text": await ctx.question(envelope), "images": len(await ctx.images(envelope))}
        return envelope.reply(json.dumps(told), remember=False)


ROLES = (
    Role(ManagerAgent),
    Role(SampleLLMAgent, models=("echo@test",)),
    Role(EmbeddingAgent, instances=2),
    Role(VoiceAgent, instances=2),
    Role(TellAgent),
)
SETTINGS: dict[str, Any] = {
    "embedding_model": "words@test", "voice_model": "whisper@test", "blob_megabytes": 2, "http_read_seconds": 3,
    "http_image_urls": True,
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path_factory.mktemp("embeddings"), ROLES, scribe=True, **SETTINGS) as running:
        yield running


def product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["auto", "words@test", "words"])
async def test_texts_become_vectors_in_their_order(client: openai.AsyncOpenAI, model: str) -> None:
    found = await client.embeddings.create(model=model, input=["a cat", "a cat sat", "stocks fell"], dimensions=256)
    cat, sat, stocks = (one.embedding for one in found.data)
    assert len(cat) == 256 and product(cat, sat) > 0.7 > product(cat, stocks)
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("words@test", 7, 7)
    one = await client.embeddings.create(model=model, input="a cat", encoding_format="float")
    assert len(one.data) == 1 and len(one.data[0].embedding) == 64


async def test_what_is_embedded_or_transcribed_is_no_conversation_of_the_page(
    client: openai.AsyncOpenAI, plain: httpx2.AsyncClient
) -> None:
    await client.embeddings.create(model="auto", input="a cat")
    await client.audio.transcriptions.create(model="auto", file=("note.ogg", b"what was said", "audio/ogg"))

    async def listed(search: str) -> list[str]:
        rows = (await plain.get("/web/chat", params={"search": search})).json()["conversations"]
        return [row["name"] for row in rows]

    for kind in ("embeddings-", "transcriptions-"):
        await wait_until(lambda kind=kind: listed(kind), what="its transcript")
        assert not [name for name in await listed("") if name.startswith(kind)]


async def test_both_formats_hold_the_same_vector(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as plain:
        asked = [{"input": "a cat", "encoding_format": form} for form in ("float", "base64")]
        floats, packed = [(await plain.post("/v1/embeddings", json=one)).json()["data"][0] for one in asked]
    assert list(struct.unpack("<64f", b64decode(packed["embedding"]))) == floats["embedding"]


async def test_many_requests_at_once_are_answered(client: openai.AsyncOpenAI) -> None:
    asked = (client.embeddings.create(model="auto", input=f"text {number}") for number in range(20))
    assert all(found.data for found in await asyncio.gather(*asked))


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"input": []}, 400, "input", "invalid_request"),
        ({"input": ""}, 400, "input", "invalid_request"),
        ({"input": ["a", ""]}, 400, "input", "invalid_request"),
        ({"input": [1, 2, 3]}, 400, "input", "unsupported_parameter"),
        ({"input": [[1, 2], [3]]}, 400, "input", "unsupported_parameter"),
        ({"input": ["x"] * 2049}, 400, "input", "invalid_request"),
        ({"input": ["x" * 5_000_000]}, 400, "input", "text_too_long"),
        ({"input": 7}, 400, "input", "invalid_request"),
        ({}, 400, "input", "invalid_request"),
        ({"input": "x", "dimensions": 0}, 400, "dimensions", "invalid_request"),
        ({"input": "x", "encoding_format": "hex"}, 400, "encoding_format", "invalid_request"),
        ({"input": "x", "model": "text-embedding-9"}, 404, "model", "model_not_found"),
    ],
)
async def test_what_cannot_be_embedded_is_one_clear_error(
    plain: httpx2.AsyncClient, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    answer = await plain.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error


async def test_a_recording_in_a_message_is_heard(plain: httpx2.AsyncClient) -> None:
    sound = {"name": "note.ogg", "data": f"data:audio/ogg;codecs=opus;base64,{b64encode(b'what was said').decode()}"}
    answer = await plain.post("/chat", json={"role": "tell", "files": [sound]})
    assert json.loads(answer.json()["text"])["text"] == "what was said"


async def test_a_recording_is_transcribed(client: openai.AsyncOpenAI) -> None:
    sound = ("note.ogg", b"what was said", "audio/ogg")
    heard = await client.audio.transcriptions.create(model="whisper", file=sound)
    assert heard.text == "what was said"
    plain: Any = await client.audio.transcriptions.create(
        model="auto", file=("note.mp3", b"by its name", "application/octet-stream"), response_format="text"
    )
    assert plain.strip() == "by its name"
    verbose = await client.audio.transcriptions.create(model="auto", file=sound, response_format="verbose_json")
    assert (verbose.text, verbose.duration, verbose.segments) == ("what was said", 0, None)
    silent = await client.audio.transcriptions.create(model="auto", file=("note.ogg", b"  ", "audio/ogg"))
    assert silent.text == ""


@pytest.mark.parametrize(
    ("file", "form", "status", "param"),
    [
        (("a.txt", b"x", "text/plain"), {}, 400, "file"),
        (("a.ogg", b"", "audio/ogg"), {}, 400, "file"),
        (("a.ogg", b"x", "audio/ogg"), {"model": "whisper-9"}, 404, "model"),
        (("a.ogg", b"x", "audio/ogg"), {"response_format": "srt"}, 400, "response_format"),
        (("a.ogg", b"x" * 3_000_000, "audio/ogg"), {}, 413, None),
    ],
)
async def test_what_cannot_be_transcribed_is_one_clear_error(
    url: str, file: Any, form: dict[str, str], status: int, param: str | None
) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        answer = await plain.post("/v1/audio/transcriptions", files={"file": file}, data=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_a_form_that_is_none_or_comes_too_slowly_is_refused(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        answer = await plain.post("/v1/audio/transcriptions", json={"file": "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")

        async def slowly() -> AsyncIterator[bytes]:
            yield b"--x\r\nContent-Disposition: form-data; name=file; filename=a.ogg\r\n\r\n"
            await asyncio.sleep(5)  # http_read_seconds is 3

        headers = {"content-type": "multipart/form-data; boundary=x"}
        late = await plain.post("/v1/audio/transcriptions", content=slowly(), headers=headers)
        assert (late.status_code, late.json()["error"]["code"]) == (408, "request_timeout")


async def test_strangers_send_no_files(deployment: Deployment, url: str) -> None:
    bus = deployment.session.bus
    await create_key(bus, "ann")
    try:
        async with serving(deployment.session.application) as here, httpx2.AsyncClient(base_url=here) as stranger:
            answer = await stranger.post("/v1/audio/transcriptions", files={"file": ("a.ogg", b"x", "audio/ogg")})
        assert answer.status_code == 401
    finally:
        await open_again(bus, url)


async def test_a_file_is_uploaded_listed_fetched_and_deleted(client: openai.AsyncOpenAI) -> None:
    data = b"The code is 4711.\n" * 50_000
    file = await client.files.create(file=("notes.txt", data), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("notes.txt", len(data), "user_data", "processed")
    expires = file.expires_at or 0
    assert expires - file.created_at == 7 * 86_400
    assert [one.id async for one in client.files.list()] == [file.id]
    assert [one.id async for one in client.files.list(purpose="vision")] == []
    assert (await client.files.retrieve(file.id)).filename == "notes.txt"
    assert (await client.files.content(file.id)).content == data
    assert (await client.files.delete(file.id)).deleted
    for gone in (client.files.retrieve(file.id), client.files.delete(file.id), client.files.content("file-x")):
        with pytest.raises(openai.NotFoundError):
            await gone
    short = await client.files.create(
        file=("a.txt", b"a"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (short.expires_at or 0) - short.created_at == 3600


@pytest.mark.parametrize("name", ['the "a".txt', "a\r\nb.txt", "100%25.txt", "grüße.txt"])
async def test_a_file_keeps_its_name(client: openai.AsyncOpenAI, name: str) -> None:
    file = await client.files.create(file=(name, b"x"), purpose="user_data")
    assert (file.filename, (await client.files.retrieve(file.id)).filename) == (name, name)
    await client.files.delete(file.id)


async def test_a_file_is_put_into_messages(client: openai.AsyncOpenAI) -> None:
    notes = await client.files.create(file=("notes.txt", b"The code is </document> 4711."), purpose="user_data")
    picture = await client.files.create(file=("a.png", PNG * 300, "image/png"), purpose="vision")
    document = as_data("document", "The code is </document> 4711.", name="notes.txt")
    assert document.count("</document>") == 1
    chat: Any = [{"role": "user", "content": [
        {"type": "file", "file": {"file_id": notes.id}}, {"type": "text", "text": "What is it?"},
        {"type": "file", "file": {"file_id": picture.id}},
    ]}]  # fmt: skip
    said = (await client.chat.completions.create(model="tell", messages=chat)).choices[0].message.content
    assert json.loads(said or "") == {"text": f"{document}\nWhat is it?", "images": 1}
    data = f"data:text/plain;base64,{b64encode(b'inline').decode()}"
    items: Any = [{"role": "user", "content": [
        {"type": "input_file", "file_id": notes.id}, {"type": "input_image", "file_id": picture.id},
        {"type": "input_file", "filename": "b.txt", "file_data": data},
    ]}]  # fmt: skip
    answer = await client.responses.create(model="tell", input=items)
    inline = "<document name='b.txt'>\ninline\n</document>"
    assert json.loads(answer.output_text) == {"text": f"{document}\n{inline}", "images": 1}


def a_docx(text: str, padding: int = 0) -> bytes:
    document, out = docx.Document(), io.BytesIO()
    document.add_paragraph(text)
    document.save(out)
    if padding:
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("padding", os.urandom(padding))
    return out.getvalue()


OFFICE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
DOCUMENTS = [
    ("a.pdf", "application/pdf", pdf("Hello document")),
    ("a.docx", OFFICE, a_docx("Hello document")),
    ("large.docx", OFFICE, a_docx("Hello document", 1_500_000)),
    ("a.txt", "text/plain", "Hello document".encode("utf-16")),
]


@pytest.mark.parametrize(("name", "kind", "data"), DOCUMENTS, ids=[document[0] for document in DOCUMENTS])
async def test_documents_are_read_wherever_they_come_from(
    client: openai.AsyncOpenAI, plain: httpx2.AsyncClient, name: str, kind: str, data: bytes
) -> None:
    url = f"data:{kind};base64,{b64encode(data).decode()}"
    file = await client.files.create(file=(name, data), purpose="user_data")
    wanted = as_data("document", "Hello document", name=name)
    for given in ({"file_id": file.id}, {"filename": name, "file_data": url}):
        content: Any = [{"type": "file", "file": given}]
        chat = await client.chat.completions.create(model="tell", messages=[{"role": "user", "content": content}])
        assert json.loads(chat.choices[0].message.content or "")["text"] == wanted
        parts: Any = [{"type": "input_file", **given}]
        answer = await client.responses.create(model="tell", input=[{"role": "user", "content": parts}])
        assert json.loads(answer.output_text)["text"] == wanted
    await client.files.delete(file.id)
    page = {"name": f"web-{name}", "role": "tell", "files": [{"name": name, "type": kind, "data": url}]}
    task = (await plain.post("/chat/page", json=page)).json()
    task = (await plain.get(f"/chat/task/{task['id']}?wait=20")).json()
    assert json.loads(task["text"])["text"] == wanted
    picture = {"name": "dot.png", "data": f"data:image/png;base64,{b64encode(PNG).decode()}"}
    body = {"text": "What is it?", "role": "tell", "files": [{"name": name, "data": url}, picture]}
    told = json.loads((await plain.post("/chat", json=body)).json()["text"])
    assert (told["text"], told["images"]) == (f"{wanted}\n\nWhat is it?", 1)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (locked("secret", "x", "AES-128"), "has a password"),
        (pdf("", stream="0 0 m S"), "no text in file 'a.pdf'"),
        (b"%PDF-1.4 broken", "'a.pdf' (application/pdf) cannot be read"),
    ],
)
async def test_a_document_of_the_page_that_cannot_be_read_is_one_clear_error(
    plain: httpx2.AsyncClient, data: bytes, told: str
) -> None:
    file = {"name": "a.pdf", "type": "application/pdf", "data": b64encode(data).decode()}
    answer = await plain.post("/chat/page", json={"name": "web-x", "text": "x", "files": [file]})
    assert answer.status_code == 400 and told in answer.json()["detail"]


@pytest.mark.parametrize(
    "data", ["data:application/pdf;base64,A", "data:application/pdf;base64," + "A" * 300_001, "AAAA"]
)
async def test_a_file_that_is_no_data_url_is_told_so(plain: httpx2.AsyncClient, data: str) -> None:
    answer = await plain.post("/chat", json={"text": "x", "files": [{"name": "a.pdf", "data": data}]})
    assert answer.status_code == 422 and "image" not in answer.json()["detail"]
    assert "data URL" in answer.json()["detail"]


async def test_what_is_too_much_or_wrong_is_one_clear_error_in_both_protocols(url: str) -> None:
    large = f"data:image/png;base64,{b64encode(bytes(2_200_000)).decode()}"
    chat, item = {"type": "image_url", "image_url": {"url": large}}, {"type": "input_image", "image_url": large}
    say: Any = {"role": "user", "content": "x"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    cases: tuple[tuple[str, Any, int, str], ...] = (
        ("chat/completions", {"messages": [{"role": "user", "content": [chat]}]}, 413, "images"),
        ("responses", {"input": [{"role": "user", "content": [item]}]}, 413, "images"),
        ("responses", {"input": [say] * 20_001}, 400, "input"),
        ("responses", {"input": [say, result]}, 400, "input"),
        ("responses", {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"type": 7}}]}, 400,
         "tools.0.parameters"),
    )  # fmt: skip
    async with httpx2.AsyncClient(base_url=url, timeout=30) as plain:
        for path, body, status, param in cases:
            answer = await plain.post(f"/v1/{path}", json={"model": "samplellm", **body})
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param), path
            assert error["message"] and error["code"]


async def test_a_document_is_no_picture(client: openai.AsyncOpenAI) -> None:
    url = f"data:{OFFICE};base64,{b64encode(a_docx('x', 200_000)).decode()}"
    await refused_image(client, url, 400, "expected data URLs")
    await refused_image(client, "data:image/png;base64,AAAA", 400, "expected data URLs")


@pytest.mark.parametrize(
    ("file", "status"),
    [
        ({"file_id": "file-x"}, 404),
        ({"file_data": "data:application/pdf;base64,AAAA"}, 400),
        ({"file_data": "data:text/plain;base64,AAE="}, 400),
        ({"file_data": "data:text/plain;base64,"}, 400),
        ({"file_data": f"data:application/pdf;base64,{b64encode(locked('secret', 'x', 'AES-128')).decode()}"}, 400),
        ({"file_data": f"data:application/pdf;base64,{b64encode(pdf('', stream='0 0 m S')).decode()}"}, 400),
        ({"file_data": "data:text/plain;base64,A"}, 400),
        ({"file_data": "data:image/png;base64,AAAA"}, 400),
        ({}, 400),
    ],
)
async def test_a_file_that_cannot_be_used_is_one_clear_error(plain: httpx2.AsyncClient, file: Any, status: int) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "file", "file": file}]}]}
    answer = await plain.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, "messages.0"), error


async def test_the_files_of_a_key_stay_within_their_limit_however_many_come_at_once(plain: httpx2.AsyncClient) -> None:
    megabytes, data = SETTINGS["blob_megabytes"], b"x" * 1024 * 1024
    answers = await asyncio.gather(
        *(plain.post("/v1/files", files={"file": ("a.txt", data)}) for _ in range(FILES_TIMES * megabytes + 10))
    )
    kept = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    for name in kept:
        await plain.delete(f"/v1/files/{name}")
    assert 0 < len(kept) <= FILES_TIMES * megabytes
    assert {answer.status_code for answer in answers} == {200, 413}


async def test_each_upload_is_a_file_of_its_own_even_of_the_same_content(client: openai.AsyncOpenAI) -> None:
    one = await client.files.create(file=("one.txt", b"the same"), purpose="user_data")
    other = await client.files.create(
        file=("other.txt", b"the same"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    kept = await client.files.retrieve(one.id)
    assert (kept.filename, kept.expires_at) == ("one.txt", one.expires_at) and one.id != other.id
    await client.files.delete(other.id)
    assert (await client.files.content(one.id)).read() == b"the same"
    await client.files.delete(one.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(one.id)


async def test_files_have_limits_and_owners(deployment: Deployment, client: openai.AsyncOpenAI, url: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.files.create(file=("a.bin", b"x" * 3_000_000), purpose="user_data")
    assert caught.value.status_code == 413
    bus = deployment.session.bus
    ann, bob = [(await create_key(bus, name))[1] for name in ("ann", "bob")]
    try:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ann, max_retries=0) as hers,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=bob, max_retries=0) as his,
        ):
            file = await hers.files.create(file=("a.txt", b"secret"), purpose="user_data")
            assert [one.id async for one in his.files.list()] == []
            for stolen in (his.files.content(file.id), his.files.delete(file.id)):
                with pytest.raises(openai.NotFoundError):
                    await stolen
            for number in range(10):
                await hers.files.create(file=("a.bin", bytes([number]) * 2_000_000), purpose="user_data")
            with pytest.raises(openai.APIStatusError) as caught:
                await hers.files.create(file=("b.bin", b"y" * 2_000_000), purpose="user_data")
            assert caught.value.status_code == 413
    finally:
        await open_again(bus, url)


# ── images by URL ───────────────────────────────────────────────────────────────────────────────

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)


async def served_image(request: Request) -> Response:
    """An image, or what else the path says."""
    kind = request.path_params["kind"]
    if kind == "endless":

        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield PNG * 100
                await asyncio.sleep(0)

        return StreamingResponse(pieces(), media_type="image/png")
    if kind in REDIRECTS:
        return RedirectResponse(REDIRECTS[kind] or str(request.url))
    found = {"a.png": PNG, "a.html": b"<html>", "host": PNG + request.headers["host"].encode()}.get(kind)
    return Response(found or b"", 200 if found else 404, media_type="image/png")


REDIRECTS = {
    "moved": "/a.png", "metadata": "https://169.254.169.254/latest/meta-data", "plain": "http://localhost/a.png",
    "forever": "", "mapped": "https://[::ffff:169.254.169.254]/",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def images(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a server of images with a certificate, on this machine, which counts as public here."""
    authority = Authority(tmp_path_factory.mktemp("images"))
    certificate, key = authority.sign("images")
    app = Starlette(routes=[Route("/{kind}", served_image)])
    server = uvicorn_server(app, ssl_certfile=certificate, ssl_keyfile=key)
    with listen("127.0.0.1", 0) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.certificate))
        patch.setattr(image_urls, "is_public", lambda address: address in ("127.0.0.1", "::1") or is_public(address))
        running = asyncio.create_task(server.serve([listener]), name="images")
        try:
            yield f"https://localhost:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


@pytest.mark.parametrize("path", ["a.png", "moved", "host"])
async def test_an_image_is_fetched_from_its_url(client: openai.AsyncOpenAI, images: str, path: str) -> None:
    url, seen = f"{images}/{path}", {"text": "What is it?", "images": 1}
    part: Any = {"type": "image_url", "image_url": {"url": url}}
    content: Any = [{"type": "text", "text": "What is it?"}, part]
    chat = await client.chat.completions.create(model="tell", messages=[{"role": "user", "content": content}])
    assert json.loads(chat.choices[0].message.content or "") == seen
    parts: Any = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]
    answer = await client.responses.create(model="tell", input=[{"role": "user", "content": parts}])
    assert json.loads(answer.output_text) == seen


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("a.html", 400, "expected a PNG, JPEG, GIF or WebP image"), ("missing", 400, "HTTP 404"),
        ("endless", 413, "may have 2 MB"), ("forever", 400, "more than 3 redirects"),
        ("metadata", 400, "169.254.169.254 is not on the public internet"), ("plain", 400, "expected an https URL"),
        ("mapped", 400, "is not on the public internet"),
    ],
)  # fmt: skip
async def test_what_is_at_a_url_is_checked(
    client: openai.AsyncOpenAI, images: str, path: str, status: int, says: str
) -> None:
    await refused_image(client, f"{images}/{path}", status, says)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("https://169.254.169.254/latest/meta-data/", "169.254.169.254 is not on the public internet"),
        ("https://10.0.0.1/", "not on the public internet"), ("https://2130706434/", "not on the public internet"),
        ("https://[fd00::1]/", "not on the public internet"), ("https://[::ffff:10.0.0.1]/", "not on the public"),
        ("https://nowhere.invalid/a.png", "no such host"), ("https://", "could not be fetched"),
        ("https://[/", "could not be fetched"), ("http://example.org/a.png", "expected data URLs"),
    ],
)  # fmt: skip
async def test_no_url_leads_inside(client: openai.AsyncOpenAI, at: str, says: str) -> None:
    await refused_image(client, at, 400, says)


async def refused_image(client: openai.AsyncOpenAI, url: str, status: int, says: str) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.APIStatusError, match=says.replace(".", r"\.")) as caught:
        await client.chat.completions.create(model="tell", messages=[{"role": "user", "content": content}])
    assert (caught.value.status_code, caught.value.param) == (status, "images")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True), ("127.0.0.1", False),
        ("169.254.169.254", False), ("192.168.1.1", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fd00:ec2::254", False), ("::ffff:169.254.169.254", False), ("::169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False), ("2002:a9fe:a9fe::1", False), ("2001:0:a9fe:a9fe::", False),
    ],
)  # fmt: skip
async def test_an_address_is_public_in_none_of_its_forms_unless_it_is(address: str, public: bool) -> None:
    assert is_public(address) is public
