"""One IMAP connection: opened and secured, and then commands with their answers, several under way at once if wanted."""

from __future__ import annotations

import io
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass

from core.errors import MailroomError
from core.hosts import connect_checked
from mail.accounts import Endpoint, Security
from mail.errors import ConnectionFailed, EncryptionRequired, MailboxProtocolError
from mail.imap_deflate import Deflater, Inflater
from mail.imap_reader import MAX_LITERAL, ResponseReader
from mail.imap_syntax import Response
from mail.replies import imap_error
from mail.steady import SteadyReader, connection_errors
from mail.tls import refuse_clear_text_login, secured

_BUFFER = 256 * 1024
MAX_ANSWER = 4 * MAX_LITERAL
"""Bytes of all answers to one command. Sync asks for what fits a batch; a server that lies about sizes must not fill the memory."""
LONGEST_IDLE = 28 * 60.0
"""Seconds. RFC 2177: a server may take a client that has said nothing for 30 minutes for gone."""
_SHORT_LITERAL = 4096  # RFC 7888: what LITERAL- allows without waiting


@dataclass(frozen=True, slots=True)
class Pending:
    """A command that was sent and not yet answered. `name` is its first word, for errors."""

    tag: bytes
    name: str


class ImapConnection:
    """Raises ConnectionFailed, ServerUnavailable or ServerThrottled when it is lost; the connection is then closed and of no more use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sock: socket.socket | None = None
        self._file: io.BufferedReader | None = None
        self._steady: SteadyReader | None = None
        self._reader: ResponseReader | None = None
        self._pending: deque[Pending] = deque()
        self._sent = 0
        self._encode: Callable[[bytes], bytes] = bytes
        self.is_preauth = False
        self.capabilities: frozenset[str] = frozenset()

    @property
    def is_open(self) -> bool:
        """False before `open` and after `close` or a loss."""
        return self._sock is not None

    def open(self) -> None:
        """Connects and agrees on TLS; `imap_login.log_in` is next, unless `is_preauth`. Leaves nothing open when it fails."""
        endpoint = self._endpoint
        sock = connect_checked(endpoint.host, endpoint.port, allow_private=endpoint.allow_private, timeout=endpoint.timeout)
        try:
            self._use(secured(sock, endpoint) if endpoint.security is Security.TLS else sock)
            self.is_preauth = self._greeting()
            if endpoint.security is Security.STARTTLS:
                self._starttls()
            if not self.capabilities:
                self.ask_capabilities()
        except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
            sock.close()
            self.close()
            raise

    def send(self, command: bytes) -> Pending:
        """Writes one command and does not wait. `command` is complete but for the tag and the line end."""
        pending = Pending(self._next_tag(), command.split(b" ", 2)[0].decode("ascii"))
        self._write(pending.tag + b" " + command + b"\r\n")
        self._pending.append(pending)
        return pending

    def finish(self, pending: Pending) -> Generator[Response, None, None]:
        """The untagged answers and then this command's own, which must be the oldest one under way. Raises what a NO, BAD or BYE means.

        Given up half-way (closed or thrown into), the rest would be taken for another command's answers: the connection is closed.
        """
        if not self._pending or self._pending[0] is not pending:
            raise MailboxProtocolError("Answers are read in the order of the commands.")
        is_finished = False
        left = MAX_ANSWER
        if self._steady is not None:
            self._steady.restart()
        try:
            while True:
                response = self._read()
                left -= len(response.line) + sum(map(len, response.literals))
                if left < 0:
                    raise MailboxProtocolError(f"{self._endpoint.where} sent more than {MAX_ANSWER} bytes in answer to {pending.name}.")
                if response.line.startswith(pending.tag + b" "):
                    self._pending.popleft()
                    is_finished = True
                    self._note_capabilities(response)
                    if response.word != b"OK":
                        raise self._error(pending.name, response)
                    yield response
                    return
                yield response
        finally:
            if not is_finished:
                self.close()

    def run(self, command: bytes) -> list[Response]:
        """One command and all its answers."""
        return list(self.finish(self.send(command)))

    def converse(self, command: bytes, replies: Iterable[bytes]) -> list[Response]:
        """A command the server asks more for: whenever it says `+` the next of `replies` is sent, with its line end."""
        left = iter(replies)
        responses: list[Response] = []
        with closing(self.finish(self.send(command))) as answers:
            for response in answers:
                if not response.line.startswith(b"+"):
                    responses.append(response)
                    continue
                reply = next(left, None)
                if reply is None:
                    raise MailboxProtocolError(f"{self._endpoint.where} asks for more than there is to say.")
                self._write(reply + b"\r\n")
        return responses

    def run_literal(self, command: bytes, literal: bytes) -> list[Response]:
        """A command whose last argument is this literal, sent at once where the server allows it (RFC 7888)."""
        size = len(literal)
        if "LITERAL+" in self.capabilities or ("LITERAL-" in self.capabilities and size <= _SHORT_LITERAL):
            return self.run(command + b" {%d+}\r\n" % size + literal)
        return self.converse(command + b" {%d}" % size, [literal])

    def idle(self, seconds: float) -> Generator[Response, None, None]:
        """IDLE (RFC 2177): the answers as they come, for so many seconds and never more than LONGEST_IDLE.

        May be closed early; the connection is then as good as after its end.
        """
        until = time.monotonic() + min(seconds, LONGEST_IDLE)
        pending = self.send(b"IDLE")
        with closing(self.finish(pending)) as answers:
            is_idle = False
            try:
                while not is_idle or self._comes_by(until):
                    response = next(answers)
                    if response.line.startswith(pending.tag + b" "):  # the server has had enough
                        return
                    is_idle = is_idle or response.line.startswith(b"+")
                    yield response
            except GeneratorExit:
                self._write(b"DONE\r\n")
                deque(answers, maxlen=0)
                raise
            self._write(b"DONE\r\n")
            rest = list(answers)
        yield from rest

    def ask_capabilities(self) -> None:
        """CAPABILITY, for servers that do not announce them unasked."""
        for response in self.run(b"CAPABILITY"):
            if response.word == b"CAPABILITY":
                self._set_capabilities(response.line.partition(b" ")[2].partition(b" ")[2])

    def refuse_clear_text(self) -> None:
        """Raises EncryptionRequired where a password would cross a public network as it is."""
        refuse_clear_text_login(self._socket(), self._endpoint)

    def compress(self) -> None:
        """COMPRESS DEFLATE (RFC 4978 3). A server that refuses it after all is talked to as before."""
        try:
            self.run(b"COMPRESS DEFLATE")
        except MailroomError:
            if not self.is_open:
                raise
            return
        if self._file is not None:
            below = Inflater(self._file, self._endpoint.where)  # not the socket: compressed bytes may be in its buffer already
            self._file = io.BufferedReader(below, _BUFFER)
            self._reader = ResponseReader(self._file, self._endpoint.where)
        self._encode = Deflater()

    def logout(self) -> None:
        """Says goodbye if there is time for it, and closes."""
        if self.is_open and not self._pending:
            try:
                self._socket().settimeout(min(2.0, self._endpoint.timeout))
                self._socket().sendall(self._encode(self._next_tag() + b" LOGOUT\r\n"))
            except (OSError, ConnectionFailed):
                pass
        self.close()

    def close(self) -> None:
        """Closes the socket without a word. May be called twice."""
        sock, file = self._sock, self._file
        self._sock = self._file = self._steady = self._reader = None
        self._pending.clear()
        if file is not None:
            file.close()
        if sock is not None:
            sock.close()

    # -- opening --------------------------------------------------------------------------------------------------------------

    def _use(self, sock: socket.socket) -> None:
        """Reads from this socket from now on. A new buffer: what came before STARTTLS must not count as said under it."""
        self._sock = sock
        self._steady = SteadyReader(sock, self._endpoint.timeout)
        self._file = io.BufferedReader(self._steady, _BUFFER)
        self._reader = ResponseReader(self._file, self._endpoint.where)

    def _greeting(self) -> bool:
        response = self._read()
        if response.word not in {b"OK", b"PREAUTH"}:
            raise MailboxProtocolError(f"{self._endpoint.where} is no IMAP server.")
        self._note_capabilities(response)
        return response.word == b"PREAUTH"

    def _starttls(self) -> None:
        """RFC 9051 6.2.1. A greeting that logs us in before TLS is how an attacker strips it."""
        if not self.capabilities:
            self.ask_capabilities()
        if self.is_preauth or "STARTTLS" not in self.capabilities:
            raise EncryptionRequired(f"{self._endpoint.where} does not offer STARTTLS.")
        self.run(b"STARTTLS")
        self._use(secured(self._socket(), self._endpoint))
        self.ask_capabilities()  # what was announced in clear text does not count

    def _note_capabilities(self, response: Response) -> None:
        code, argument = response.code
        if code == "CAPABILITY":
            self._set_capabilities(argument)

    def _set_capabilities(self, announced: bytes) -> None:
        self.capabilities = frozenset(announced.decode("ascii", "replace").upper().split()) - self._endpoint.without

    # -- the wire -------------------------------------------------------------------------------------------------------------

    def _read(self) -> Response:
        """The next response. A BYE ends the connection whatever was asked (RFC 9051 7.1.5)."""
        if self._reader is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        with self._io():
            response = self._reader.read()
            if response.line.startswith(b"* ") and b"BYE" in response.line[:20].upper() and response.word == b"BYE":
                raise self._error("BYE", response)
        return response

    def _comes_by(self, until: float) -> bool:
        """Whether anything, or the end of the stream, comes before that moment. Nothing is read of it, so that nothing is torn."""
        left = until - time.monotonic()
        if self._steady is None or self._file is None or left <= 0:
            return False
        self._steady.restart()
        with self._io(), suppress(TimeoutError), self._steady.resting(left):
            self._file.peek(1)
            return True
        return False

    def _write(self, data: bytes) -> None:
        with self._io():
            self._socket().sendall(self._encode(data))

    def _io(self) -> AbstractContextManager[None]:
        return connection_errors(self._endpoint, self.close)

    def _error(self, name: str, response: Response) -> Exception:
        return imap_error(name, response.code[0], response.text, where=self._endpoint.where)

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return self._sock

    def _next_tag(self) -> bytes:
        self._sent += 1
        return b"M%d" % self._sent
