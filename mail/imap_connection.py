"""One IMAP connection: opened, secured, logged in, and then commands with their answers, several under way at once if wanted."""

from __future__ import annotations

import base64
import io
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from core.hosts import connect_checked
from mail.accounts import Endpoint, Security
from mail.errors import AuthenticationRefused, ConnectionFailed, EncryptionRequired, MailboxProtocolError
from mail.imap_reader import ResponseReader
from mail.imap_syntax import Response, quoted
from mail.replies import imap_error
from mail.tls import refuse_clear_text_login, secured

_BUFFER = 256 * 1024


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
        self._reader: ResponseReader | None = None
        self._pending: deque[Pending] = deque()
        self._sent = 0
        self.capabilities: frozenset[str] = frozenset()

    @property
    def is_open(self) -> bool:
        """False before `open` and after `close` or a loss."""
        return self._sock is not None

    def open(self) -> None:
        """Connects, agrees on TLS and logs in. Leaves nothing open when it fails."""
        endpoint = self._endpoint
        sock = connect_checked(endpoint.host, endpoint.port, allow_private=endpoint.allow_private, timeout=endpoint.timeout)
        try:
            self._use(secured(sock, endpoint) if endpoint.security is Security.TLS else sock)
            is_preauth = self._greeting()
            if endpoint.security is Security.STARTTLS:
                self._starttls(is_preauth=is_preauth)
            if not is_preauth:
                self._login()
            if not self.capabilities:
                self._ask_capabilities()
        except BaseException:
            sock.close()
            self.close()
            raise

    def send(self, command: bytes) -> Pending:
        """Writes one command and does not wait. `command` is complete but for the tag and the line end."""
        pending = Pending(self._next_tag(), command.split(b" ", 2)[0].decode("ascii"))
        with self._io():
            self._socket().sendall(pending.tag + b" " + command + b"\r\n")
        self._pending.append(pending)
        return pending

    def finish(self, pending: Pending) -> Iterator[Response]:
        """The untagged answers up to this command's own, which must be the oldest one under way. Raises what a NO, BAD or BYE means.

        Given up half-way (closed or thrown into), the rest would be taken for another command's answers: the connection is closed.
        """
        if not self._pending or self._pending[0] is not pending:
            raise MailboxProtocolError("Answers are read in the order of the commands.")
        is_finished = False
        try:
            while True:
                response = self._read()
                if response.line.startswith(pending.tag + b" "):
                    self._pending.popleft()
                    is_finished = True
                    self._note_capabilities(response)
                    if response.word != b"OK":
                        raise self._error(pending.name, response)
                    return
                yield response
        finally:
            if not is_finished:
                self.close()

    def run(self, command: bytes) -> list[Response]:
        """One command and all its untagged answers."""
        return list(self.finish(self.send(command)))

    def logout(self) -> None:
        """Says goodbye if there is time for it, and closes."""
        if self.is_open and not self._pending:
            try:
                self._socket().settimeout(min(2.0, self._endpoint.timeout))
                self._socket().sendall(self._next_tag() + b" LOGOUT\r\n")
            except (OSError, ConnectionFailed):
                pass
        self.close()

    def close(self) -> None:
        """Closes the socket without a word. May be called twice."""
        sock, file = self._sock, self._file
        self._sock = self._file = self._reader = None
        self._pending.clear()
        if sock is not None:
            sock.close()
        if file is not None:  # the descriptor lives until both are closed
            file.close()

    # -- opening --------------------------------------------------------------------------------------------------------------

    def _use(self, sock: socket.socket) -> None:
        """Reads from this socket from now on. A new buffer: what came before STARTTLS must not count as said under it."""
        self._sock = sock
        self._file = file = cast(io.BufferedReader, sock.makefile("rb", buffering=_BUFFER))
        self._reader = ResponseReader(file, self._endpoint.where)

    def _greeting(self) -> bool:
        response = self._read()
        if response.word not in {b"OK", b"PREAUTH"}:
            raise MailboxProtocolError(f"{self._endpoint.where} is no IMAP server.")
        self._note_capabilities(response)
        return response.word == b"PREAUTH"

    def _starttls(self, *, is_preauth: bool) -> None:
        """RFC 9051 6.2.1. A greeting that logs us in before TLS is how an attacker strips it."""
        if not self.capabilities:
            self._ask_capabilities()
        if is_preauth or "STARTTLS" not in self.capabilities:
            raise EncryptionRequired(f"{self._endpoint.where} does not offer STARTTLS.")
        self.run(b"STARTTLS")
        self._use(secured(self._socket(), self._endpoint))
        self._ask_capabilities()  # what was announced in clear text does not count

    def _login(self) -> None:
        endpoint = self._endpoint
        if endpoint.username is None or endpoint.secret is None:
            raise AuthenticationRefused(f"There is no user name or password for {endpoint.where}.")
        refuse_clear_text_login(self._socket(), endpoint)
        if not self.capabilities:
            self._ask_capabilities()
        announced = self.capabilities
        self.capabilities = frozenset()  # they may change with the login; asked again unless the answer carries them
        if "AUTH=PLAIN" in announced:
            self._authenticate_plain(endpoint.username, endpoint.secret.reveal(), has_initial="SASL-IR" in announced)
        elif "LOGINDISABLED" in announced:
            raise EncryptionRequired(f"{endpoint.where} accepts no password on this connection.")
        else:
            self._command_login(endpoint.username, endpoint.secret.reveal())

    def _authenticate_plain(self, username: str, password: str, *, has_initial: bool) -> None:
        """RFC 4616; carries any character, unlike LOGIN."""
        initial = base64.b64encode(f"\0{username}\0{password}".encode())
        if has_initial:
            self.run(b"AUTHENTICATE PLAIN " + initial)
            return
        pending = self.send(b"AUTHENTICATE PLAIN")
        self._await_continuation(pending)
        self._write(initial + b"\r\n")
        list(self.finish(pending))

    def _command_login(self, username: str, password: str) -> None:
        """LOGIN with quoted strings where they can carry the text, synchronising literals where they cannot (RFC 9051 4.3)."""
        if all(text.isascii() and text.isprintable() for text in (username, password)):
            self.run(b"LOGIN " + quoted(username) + b" " + quoted(password))
            return
        user, secret = username.encode(), password.encode()
        pending = self.send(b"LOGIN {%d}" % len(user))
        self._await_continuation(pending)
        self._write(user + b" {%d}\r\n" % len(secret))
        self._await_continuation(pending)
        self._write(secret + b"\r\n")
        list(self.finish(pending))

    def _ask_capabilities(self) -> None:
        for response in self.run(b"CAPABILITY"):
            if response.word == b"CAPABILITY":
                self.capabilities = _words(response.line.split(None, 2)[2])

    def _note_capabilities(self, response: Response) -> None:
        code, argument = response.code
        if code == "CAPABILITY":
            self.capabilities = _words(argument)

    # -- the wire -------------------------------------------------------------------------------------------------------------

    def _await_continuation(self, pending: Pending) -> None:
        while True:
            response = self._read()
            if response.line.startswith(b"+"):
                return
            if response.line.startswith(pending.tag + b" "):
                self._pending.popleft()
                raise self._error(pending.name, response)

    def _read(self) -> Response:
        """The next response. A BYE ends the connection whatever was asked (RFC 9051 7.1.5)."""
        if self._reader is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        with self._io():
            response = self._reader.read()
            if response.line.startswith(b"* ") and response.word == b"BYE":
                raise self._error("BYE", response)
        return response

    def _write(self, data: bytes) -> None:
        with self._io():
            self._socket().sendall(data)

    @contextmanager
    def _io(self) -> Iterator[None]:
        """Turns what the socket says into our errors, and closes the connection on any of them."""
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise ConnectionFailed(f"{self._endpoint.where} did not answer within {self._endpoint.timeout:g} s.") from error
        except OSError as error:
            self.close()
            raise ConnectionFailed(f"The connection to {self._endpoint.where} was lost.") from error
        except BaseException:
            self.close()
            raise

    def _error(self, name: str, response: Response) -> Exception:
        return imap_error(name, response.code[0], response.text, where=self._endpoint.where)

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return self._sock

    def _next_tag(self) -> bytes:
        self._sent += 1
        return b"M%d" % self._sent


def _words(text: bytes) -> frozenset[str]:
    return frozenset(text.decode("ascii", "replace").upper().split())
