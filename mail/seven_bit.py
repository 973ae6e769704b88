"""A message in 7-bit lines, for servers without 8BITMIME (RFC 6152 3): parts in 8-bit text become quoted-printable or base64."""

from __future__ import annotations

import io
from email import message_from_bytes, policy
from email.generator import BytesGenerator

_SEVEN_BITS = policy.compat32.clone(cte_type="7bit", linesep="\r\n", max_line_length=0)


def in_seven_bits(raw: bytes) -> bytes | None:
    """The same message without a byte above 127, or None where that is not feasible: such a byte stands in a header."""
    head = raw.partition(b"\r\n\r\n")[0]
    if not head.isascii():
        return None
    target = io.BytesIO()
    try:
        BytesGenerator(target, mangle_from_=False, policy=_SEVEN_BITS).flatten(message_from_bytes(raw, policy=_SEVEN_BITS))
    except (LookupError, ValueError, TypeError):  # a charset nobody knows, a structure that is none
        return None
    narrow = target.getvalue()
    return narrow if narrow.isascii() else None
