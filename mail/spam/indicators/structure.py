"""How a message is made: what every mail program writes, and what this one left out or got wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.spam.hops import received_at
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View

_ANSWER = re.compile(r"^\s*(?:re|aw|sv|antw)\s*:", re.IGNORECASE)
_AHEAD = 2 * 86_400
_BROKEN = frozenset({"bad_header", "structure", "too_deep", "too_many_parts", "headers_truncated", "encoding"})


def structure(view: View) -> Iterator[Indicator]:
    """Of the header and of the MIME tree."""
    if "unparsable" in view.defects:
        yield found("unparsable")
        return
    yield from _date(view)
    identifier = view.first("message-id")
    if not identifier:
        yield found("missing_message_id")
    elif "@" not in identifier or not identifier.startswith("<") or not identifier.endswith(">"):
        yield found("invalid_message_id", identifier)
    if len(view.names.get("from", ())) > 1:
        yield found("several_from")
    if _ANSWER.match(view.subject) and not any(name in view.names for name in ("in-reply-to", "references", "thread-index", "list-id")):
        yield found("fake_reply", view.subject)
    if "to" not in view.names or "undisclosed" in view.first("to")[:200].lower():
        yield found("undisclosed_recipients")
    if broken := view.defects & _BROKEN:
        yield found("malformed_message", ", ".join(sorted(broken)))


def _date(view: View) -> Iterator[Indicator]:
    if "date" not in view.names:
        yield found("missing_date")
    elif view.date is None:
        yield found("invalid_date", view.first("date"))
    else:
        received = received_at(view.first("received"))
        if received is not None and view.date.timestamp() - received > _AHEAD:
            yield found("date_in_future", view.first("date"))
