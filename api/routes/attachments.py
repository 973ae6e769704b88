"""Uploads: a file to be sent with a later mail. Kept under a name of ours; what the caller calls it is only data."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile

from api.auth import ActingNow, AuthenticatedRoute
from api.mail_shapes import AttachmentView
from api.problems import Problem
from core.errors import InvalidInputError, TenantError
from storage.repositories.outbound import Attachments

router = APIRouter(route_class=AuthenticatedRoute, tags=["email"])
PATH = "/api/email/attachments"
LARGEST = 25 * 2**20
ENVELOPE = 16 * 2**10
"""What the multipart form around a file may add to its size."""

MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}", re.ASCII)
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
            }
        },
    }
}


async def uploaded(request: Request) -> AsyncIterator[UploadFile]:
    """The one file of the form. Read here and not by FastAPI, which would read it before the key is checked."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "unsupported_media_type", "Send the file as multipart/form-data in a field named file.")
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidInputError("Send one file in a form field named file.")
        if (file.size or 0) > LARGEST:
            raise Problem(413, "content_too_large", f"A file may have at most {LARGEST // 2**20} MiB.")
        yield file


@router.post(PATH, status_code=201, openapi_extra=FORM)
def upload(request: Request, acting: ActingNow, file: Annotated[UploadFile, Depends(uploaded)]) -> AttachmentView:
    """Keep a file; name its id in the attachment_ids of `send_email`."""
    if acting.identity.is_system:
        raise TenantError("A file belongs to a tenant; name it in X-Tenant-Id.")
    content_type = file.content_type or ""
    directory = request.app.state.settings.files / acting.identity.tenant_id
    with _kept(file.file, directory) as stored, acting.session() as session:
        row = Attachments(session).add(
            filename=safe_filename(file.filename or ""),
            content_type=content_type if MEDIA_TYPE.fullmatch(content_type) else "application/octet-stream",
            size=stored.stat().st_size,
            stored_filename=stored.name,
        )
    return AttachmentView.model_validate(row)


@contextmanager
def _kept(source: IO[bytes], directory: Path) -> Iterator[Path]:
    """The content in a new file, which is removed again when the row about it does not come to be."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / secrets.token_hex(16)
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as target:
            shutil.copyfileobj(source, target)
        yield path
    except BaseException:  # a request that is cancelled leaves no file either
        path.unlink(missing_ok=True)
        raise


def safe_filename(name: str) -> str:
    """The last part of what the caller calls it, without anything that steers a terminal, a header or a file system."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C").strip(" .")
    return clean[-255:] or "file"
