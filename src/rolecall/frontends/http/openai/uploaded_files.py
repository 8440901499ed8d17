"""Files that are used in several messages: upload, list, fetch, delete, and put into a message by their id."""

from __future__ import annotations

import io
import secrets
from collections.abc import MutableMapping, Sequence
from typing import Annotated, Any

from fastapi import File, Form, Path, Query, Response, UploadFile

from rolecall.bus.blobs import Files, StoredFile, image_type
from rolecall.bus.foreign_text import as_data
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.body import Upload, file_name
from rolecall.frontends.http.image_urls import fetch_images
from rolecall.frontends.http.intake import PREFIX, file_data, media_type, read_text
from rolecall.frontends.http.openai.completion_request import ChatMessage, ImageUrl
from rolecall.frontends.http.openai.request_fields import FilePart
from rolecall.frontends.http.openai.response_request import InputItem
from rolecall.frontends.http.problems import Problem, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep

DAY = 86_400
KEPT_SECONDS = 7 * DAY
SHORTEST, LONGEST = 3600, 30 * DAY
FILES_TIMES = 10
"""The files of a key may have this many times BLOB_MEGABYTES together."""
FILE_ID = "file-"
FileId = Annotated[str, Path(max_length=100, description="the `id` of a file")]
router = api_router(prefix="/v1", tags=["OpenAI-compatible"])


@router.post("/files", summary="Upload a file", responses=problem_responses(400, 413))
async def upload(
    services: ServicesDep, who: User,
    file: Annotated[UploadFile, File(description="up to BLOB_MEGABYTES")],
    purpose: Annotated[str, Form(max_length=40)] = "user_data",
    seconds: Annotated[int, Form(alias="expires_after[seconds]", ge=SHORTEST, le=LONGEST)] = KEPT_SECONDS,
) -> dict[str, Any]:  # fmt: skip
    """It is stored for 7 days, or as `expires_after` says for up to 30, and can be used in messages by its `id`."""
    if not file.size:
        raise Problem(400, text("empty_file"), "invalid_request", param="file")
    name = file_name(file) or "file"
    kind = media_type(file.content_type or "", name)
    async with services.storing[who.id]:
        stored = await _files(services, who).store(await file.read(), name, kind, purpose, seconds, apart=True)
    return _shown(stored)


@router.get("/files", summary="List the files", responses=problem_responses())
async def list_files(
    services: ServicesDep, who: User, purpose: Annotated[str, Query(max_length=40)] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000, after: Annotated[str, Query(max_length=100)] = "",
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
) -> dict[str, Any]:  # fmt: skip
    """Those of this key, newest first unless `order` is `asc`."""
    found = [file for file in await _files(services, who).list() if not purpose or file.purpose == purpose]
    found = found[::-1] if order == "asc" else found
    at = next((number + 1 for number, file in enumerate(found) if FILE_ID + file.id == after), 0)
    page = [_shown(file) for file in found[at : at + limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(found) > at + limit, **ends}


@router.get("/files/{file_id}", summary="Get a file", responses=problem_responses(404))
async def show(file_id: FileId, services: ServicesDep, who: User) -> dict[str, Any]:
    """What is known of it."""
    return _shown((await _found(services, who, file_id))[0])


@router.get("/files/{file_id}/content", summary="Download a file", response_class=Response,
            responses=problem_responses(404))  # fmt: skip
async def download(file_id: FileId, services: ServicesDep, who: User) -> Response:
    """Its bytes, as they were uploaded."""
    _, data = await _found(services, who, file_id)
    headers = {"content-disposition": "attachment"}
    return Response(data, headers=headers, media_type="application/octet-stream")


@router.delete("/files/{file_id}", summary="Delete a file", responses=problem_responses(404))
async def delete(file_id: FileId, services: ServicesDep, who: User) -> dict[str, Any]:
    """Messages that were sent with it keep it."""
    file, _ = await _found(services, who, file_id)
    await _files(services, who).delete(file.id)
    return {"id": file_id, "object": "file", "deleted": True}


async def place_in_chat(
    services: Services, who: Principal, messages: Sequence[ChatMessage], uploads: MutableMapping[str, Upload]
) -> None:
    """Replace the files and the https URLs in ``messages`` by texts and pictures. Raises Problem."""
    for number, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type == "file" and part.file is not None:
                said, url = await placed(services, who, part.file, f"messages.{number}", uploads)
                part.type, part.text = ("image_url", "") if url else ("text", said)
                part.image_url = ImageUrl(url=url) if url else None
    listed = [part for message in messages if isinstance(message.content, list) for part in message.content]
    images = [part.image_url for part in listed if part.image_url is not None]
    fetched = await fetch_images([image.url for image in images], services.settings, uploads)
    for image in images:
        image.url = fetched.get(image.url, image.url)


async def place_in_items(
    services: Services, who: Principal, items: Sequence[InputItem], uploads: MutableMapping[str, Upload]
) -> None:
    """Replace the files and the https URLs in ``items`` by texts and pictures. Raises Problem."""
    for number, item in enumerate(items):
        for part in item.content if isinstance(item.content, list) else ():
            if part.type == "input_file" or (part.type == "input_image" and part.file_id and not part.image_url):
                said, url = await placed(services, who, part, f"input.{number}", uploads)
                part.type, part.text = ("input_image", "") if url else ("input_text", said)
                part.image_url = url or None
    parts = [part for item in items if isinstance(item.content, list) for part in item.content]
    fetched = await fetch_images([part.image_url or "" for part in parts], services.settings, uploads)
    for part in parts:
        part.image_url = fetched.get(part.image_url or "", part.image_url)


async def placed(
    services: Services, who: Principal, part: FilePart, param: str, uploads: MutableMapping[str, Upload]
) -> tuple[str, str]:
    """The file of ``part`` as a message can hold it: its text, marked as a document, or the URL of a picture, which is
    added to ``uploads``. Raises Problem for other kinds of files."""
    async with services.reading[who.id]:
        if part.file_id:
            file, data = await _found(services, who, part.file_id, param)
            name, kind = file.name, file.media_type
        else:
            name = part.filename or "file"
            kind, data = await file_data(part.file_data or "", name, uploads, param)
        if image_type(data):
            key = f"upload:{secrets.token_hex(16)}"
            uploads[key] = Upload(kind, io.BytesIO(data))
            return "", key
        return as_data("document", await read_text(services, data, name, kind, param), name=name), ""


async def _found(
    services: Services, who: Principal, file_id: str, param: str | None = None
) -> tuple[StoredFile, bytes]:
    found = await _files(services, who).find(file_id.removeprefix(FILE_ID)) if file_id.startswith(FILE_ID) else None
    if found is None:
        raise Problem(404, text("no_such_file", id=repr(file_id[:100])), "not_found", param=param)
    return found


def _files(services: Services, who: Principal) -> Files:
    most = services.settings.blob_megabytes * 1024 * 1024 * FILES_TIMES
    return Files(services.bus, f"{PREFIX}{who.id}:files", most)


def _shown(file: StoredFile) -> dict[str, Any]:
    return {
        "id": FILE_ID + file.id, "object": "file", "bytes": file.size, "created_at": file.created,
        "expires_at": file.expires, "filename": file.name, "purpose": file.purpose, "status": "processed",
    }  # fmt: skip
