"""COMPRESS=DEFLATE (RFC 4978): what the server sends is inflated piece by piece, never more than the reader has room for."""

from __future__ import annotations

import io
import zlib
from typing import Protocol

from mail.errors import MailboxProtocolError

_RAW = -zlib.MAX_WBITS
"""RFC 1951 without a zlib header."""
_PIECE = 64 * 1024


class Source(Protocol):
    """The buffered socket file below."""

    def read1(self, size: int, /) -> bytes:
        """What is there, waiting only for the first byte; empty at the end of the stream."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


class Inflater(io.RawIOBase):
    """A raw stream over a compressed one. A bomb inflates only as far as it is read, and the reader has its own bounds."""

    def __init__(self, source: Source, where: str) -> None:
        super().__init__()
        self._source = source
        self._where = where
        self._inflate = zlib.decompressobj(_RAW)
        self._left = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview | bytearray, /) -> int:  # type: ignore[override]
        """Fills at most the buffer; 0 at the end of the stream. Raises MailboxProtocolError where it is no deflate stream."""
        while True:
            try:
                data = self._inflate.decompress(self._left, len(buffer))
            except zlib.error as error:
                raise MailboxProtocolError(f"{self._where} sent compressed data that cannot be read.") from error
            self._left = self._inflate.unconsumed_tail
            if data or self._inflate.eof:
                buffer[: len(data)] = data
                return len(data)
            self._left = self._source.read1(_PIECE)
            if not self._left:
                return 0

    def close(self) -> None:
        """Closes the stream below, too."""
        self._source.close()
        super().close()


class Deflater:
    """Compresses commands, each complete on the wire at once."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=_RAW)

    def __call__(self, data: bytes) -> bytes:
        """The bytes to send."""
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
