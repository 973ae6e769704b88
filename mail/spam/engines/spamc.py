"""SpamAssassin's daemon over SPAMC/1.5: one connection for each question, over TCP or a Unix socket."""

from __future__ import annotations

import re
import socket
import time
from urllib.parse import urlsplit

from mail.spam.engines.engine import MAX_ANSWER, EngineUnavailable, Envelope, header_safe
from mail.spam.verdict import EngineScore

_STATUS = re.compile(rb"SPAMD/\d+\.\d+ (\d+) ")
_SPAM = re.compile(rb"(?im)^Spam:\s*(?:True|Yes|False|No)\s*;\s*(-?\d+(?:\.\d+)?)\s*/\s*(-?\d+(?:\.\d+)?)")
_DEFAULT_PORT = 783


class Spamc:
    """One server: `tcp://host:port`, or the path of its Unix socket."""

    name = "spamassassin"

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._url = url
        self._timeout = timeout

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        """Raises EngineUnavailable."""
        head, body = self._ask("SYMBOLS", source, envelope)
        scores = _SPAM.search(head)
        if scores is None:
            raise EngineUnavailable("spamd answered without a score.")
        symbols = re.split(r"[,\s]+", body.decode("ascii", "replace").strip())
        return EngineScore(self.name, float(scores[1]), float(scores[2]), tuple(symbol for symbol in symbols if symbol))

    def learn(self, source: bytes, envelope: Envelope, *, is_spam: bool) -> None:
        """Into the server's own store only, nothing is reported elsewhere; spamd must allow it (`--allow-tell`). Raises
        EngineUnavailable."""
        headers = f"Message-class: {'spam' if is_spam else 'ham'}\r\nSet: local\r\n"
        self._ask("TELL", source, envelope, headers)

    def _ask(self, command: str, source: bytes, envelope: Envelope, headers: str = "") -> tuple[bytes, bytes]:
        """The answer's header and body."""
        user = f"User: {envelope.user}\r\n" if header_safe(envelope.user) else ""
        request = f"{command} SPAMC/1.5\r\nContent-length: {len(source)}\r\n{user}{headers}\r\n"
        deadline = time.monotonic() + self._timeout
        try:
            with self._connected() as connection:
                connection.sendall(request.encode("ascii") + source)
                connection.shutdown(socket.SHUT_WR)
                answer = _all_of(connection, deadline)
        except OSError as error:
            raise EngineUnavailable(f"spamd did not answer: {type(error).__name__}.") from error
        status = _STATUS.match(answer)
        head, separator, body = answer.partition(b"\r\n\r\n")
        if status is None or not separator:
            raise EngineUnavailable("spamd's answer is none of its protocol.")
        if int(status[1]) != 0:
            raise EngineUnavailable(f"spamd refused: its code is {int(status[1])}.")
        return head, body

    def _connected(self) -> socket.socket:
        if "://" not in self._url:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout)
            try:
                connection.connect(self._url)
            except OSError:
                connection.close()
                raise
            return connection
        place = urlsplit(self._url)
        return socket.create_connection((place.hostname or "", place.port or _DEFAULT_PORT), timeout=self._timeout)


def _all_of(connection: socket.socket, deadline: float) -> bytes:
    """Until the other side closes, within the deadline and MAX_ANSWER."""
    answer = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(65_536)
        if not chunk:
            return bytes(answer)
        answer += chunk
        if len(answer) > MAX_ANSWER:
            raise EngineUnavailable("spamd's answer is too long.")
