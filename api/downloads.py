"""Bytes of stored mail on their way out: where they come from, and in which form they cannot do any harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from fastapi import Request, Response

from api.auth import Acting
from core.errors import ConflictError, PermanentError, Snooze, TransientError, UnavailableError
from core.tenancy import acting_as
from mail.mime_parts import clean_filename
from storage.repositories.mail_views import MailViews
from storage.repositories.sources import EmailSources

FetchSource = Callable[[str, str, int, int], bytes | None]
"""(account, the folder as its server spells it, UIDVALIDITY, UID) to the message, or None when it is not there any more. Called with
the identity bound and outside of any transaction. May raise TransientError, Snooze or PermanentError; their text is not told."""

_SHOWN_AS_A_PAGE = re.compile(r"html|xml|svg|script|css", re.IGNORECASE)


def source_of(request: Request, acting: Acting, message_id: str) -> bytes:
    """The message as it came: what was kept, else what its server has (`app.state.fetch_source`, a FetchSource).

    Raises NotFoundError; ConflictError when the server no longer has it; UnavailableError when it cannot be asked now.
    """
    with acting.session() as session:
        views = MailViews(session)
        message = views.message(message_id)
        kept = EmailSources(session).one(message_id)
        folder = views.place(message)
    if kept is not None:
        return kept
    fetch: FetchSource | None = getattr(request.app.state, "fetch_source", None)
    if fetch is None:
        raise UnavailableError("The message was not kept, and this server does not read from mail servers.")
    try:
        with acting_as(acting.identity):
            found = fetch(message.client_id, folder.raw_name or folder.name, message.uid_validity, message.uid)
    except (TransientError, Snooze) as error:
        retry_after = error.delay if isinstance(error, Snooze) else error.retry_after
        raise UnavailableError("The mail server cannot give this message now.", retry_after=retry_after) from error
    except PermanentError as error:
        raise ConflictError("The mail server does not give this message; see the last error of its account.") from error
    if found is None:
        raise ConflictError("The message is no longer on its mail server as it was stored; sync its account and look again.")
    return found


def download(content: bytes, content_type: str, filename: str) -> Response:
    """To be saved and never shown: what a browser might run comes as plain bytes."""
    name = clean_filename(filename) or "file"
    plain = re.sub(r"[^\w .()-]", "_", name, flags=re.ASCII)
    return Response(
        content,
        media_type="application/octet-stream" if _SHOWN_AS_A_PAGE.search(content_type) else content_type,
        headers={
            "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
        },
    )
