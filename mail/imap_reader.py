"""The server's bytes cut into responses: lines, and the literals inside them (RFC 9051 4.3), each within its bound."""

from __future__ import annotations

import re
from typing import Protocol

from mail.errors import ConnectionFailed, MailboxProtocolError
from mail.imap_syntax import Response

MAX_LINE = 1024 * 1024
MAX_LITERAL = 50 * 1024 * 1024
"""Bytes of all strings in one answer. Sync asks for sizes first and reads only the header of a larger message."""
MAX_LITERALS = 1000

_LITERAL = re.compile(rb"~?\{(\d{1,20})\+?\}$")
_STATUS = (b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH")


class ByteStream(Protocol):
    """The two reads we need of a buffered socket file."""

    def readline(self, limit: int, /) -> bytes:
        """Up to and with the next line feed, or `limit` bytes."""
        ...

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer at the end of the stream."""
        ...


class ResponseReader:
    """Reads responses from a buffered socket file. Raises ConnectionFailed at the end of the stream, MailboxProtocolError over a bound."""

    def __init__(self, file: ByteStream, where: str) -> None:
        self._file = file
        self._where = where

    def read(self) -> Response:
        """The next response, whole."""
        line = self._line()
        if _LITERAL.search(line) is None or (line.split(b" ", 2)[1:2] and line.split(b" ", 2)[1].upper() in _STATUS):
            return Response(line)  # text of a status line may well end with `{1}` and mean it
        pieces, literals, left = [line], [], MAX_LITERAL
        while (match := _LITERAL.search(pieces[-1])) is not None:
            literals.append(self._literal(int(match.group(1)), left))
            if len(literals) > MAX_LITERALS:
                raise MailboxProtocolError(f"{self._where} sent an answer with too many strings.")
            pieces.append(self._line())
            left -= len(literals[-1]) + len(pieces[-1])
        return Response(b"".join(pieces), literals)

    def _line(self) -> bytes:
        line = self._file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise MailboxProtocolError(f"{self._where} sent a line of more than {MAX_LINE} bytes.")
        if not line.endswith(b"\n"):
            raise ConnectionFailed(f"{self._where} closed the connection.")
        return line.rstrip(b"\r\n")

    def _literal(self, size: int, left: int) -> bytes:
        if size > left:
            raise MailboxProtocolError(f"{self._where} sent strings of more than {MAX_LITERAL} bytes in one answer.")
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionFailed(f"{self._where} closed the connection in the middle of a message.")
        return data
