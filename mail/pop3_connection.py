"""One POP3 connection (RFC 1939, RFC 2449): opened, secured and logged in, then commands, several under way where the server allows it."""

from __future__ import annotations

import io
import socket
from contextlib import AbstractContextManager

from core.hosts import connect_checked
from mail.accounts import Endpoint, Security
from mail.errors import AuthenticationRefused, ConnectionFailed, EncryptionRequired, MailboxProtocolError
from mail.imap_reader import MAX_LITERAL
from mail.replies import pop3_error
from mail.sasl import Exchange, plain, token_exchange
from mail.steady import SteadyReader, connection_errors
from mail.tls import refuse_clear_text_login, secured

MAX_STATUS = 4096
"""Bytes of a status line; RFC 2449 allows 512."""
_PIECE = 64 * 1024


class Pop3Refused(MailboxProtocolError):  # noqa: N818  (says what happened)
    """The server said -ERR to this one command; the connection is still good."""


class Pop3Connection:
    """Raises ConnectionFailed, ServerUnavailable or ServerThrottled when it is lost; the connection is then closed and of no more use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sock: socket.socket | None = None
        self._file: io.BufferedReader | None = None
        self._steady: SteadyReader | None = None
        self.capabilities: dict[str, list[str]] = {}

    def open(self, *, log_in: bool = True) -> None:
        """Connects, agrees on TLS and logs in. Leaves nothing open when it fails."""
        endpoint = self._endpoint
        sock = connect_checked(endpoint.host, endpoint.port, allow_private=endpoint.allow_private, timeout=endpoint.timeout)
        try:
            self._use(secured(sock, endpoint) if endpoint.security is Security.TLS else sock)
            self._greeting()
            self._ask_capabilities()
            if endpoint.security is Security.STARTTLS:
                self._stls()
            if log_in:
                self._log_in()
                self._ask_capabilities()  # some are told only after the login
        except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
            sock.close()
            self.close()
            raise

    def send(self, *commands: bytes) -> None:
        """Writes commands, each without its line end; as many answers are to be read."""
        with self._io():
            self._socket().sendall(b"".join(command + b"\r\n" for command in commands))

    def status(self, name: str) -> bytes:
        """The rest of a +OK line. Raises Pop3Refused for -ERR, or what it means for the whole connection."""
        return self._judge(name, self._line())

    def run(self, command: bytes) -> bytes:
        """One command with an answer of one line."""
        self.send(command)
        return self.status(_name(command))

    def run_list(self, command: bytes) -> list[bytes]:
        """One command with an answer of many lines."""
        self.run(command)
        return self.body().splitlines()

    def body(self) -> bytes:
        """The lines up to the lone dot, dots unstuffed (RFC 1939 3). A line may be of any length; all of them together are bounded."""
        pieces: list[bytes] = []
        left, at_start = MAX_LITERAL, True
        while True:
            with self._io():
                piece = self._reader().readline(_PIECE)
                if not piece:
                    raise ConnectionFailed(f"{self._endpoint.where} closed the connection in the middle of an answer.")
                if at_start and piece in {b".\r\n", b".\n"}:
                    return b"".join(pieces)
                left -= len(piece)
                if left < 0:
                    raise MailboxProtocolError(f"{self._endpoint.where} sent an answer of more than {MAX_LITERAL} bytes.")
            pieces.append(piece[1:] if at_start and piece.startswith(b".") else piece)
            at_start = piece.endswith(b"\n")

    @property
    def is_open(self) -> bool:
        """False before `open` and after `close` or a loss."""
        return self._sock is not None

    def quit(self) -> None:
        """Says goodbye if there is time for it, and closes. Nothing is deleted by it, for nothing was marked."""
        if self._sock is not None:
            try:
                self._sock.settimeout(min(2.0, self._endpoint.timeout))
                self._sock.sendall(b"QUIT\r\n")
            except OSError:
                pass
        self.close()

    def close(self) -> None:
        """Closes the socket without a word. May be called twice."""
        sock, file = self._sock, self._file
        self._sock = self._file = self._steady = None
        if sock is not None:
            sock.close()
        if file is not None:
            file.close()

    # -- opening --------------------------------------------------------------------------------------------------------------

    def _use(self, sock: socket.socket) -> None:
        """Reads from this socket from now on. A new buffer: what came before STLS must not count as said under it."""
        self._sock = sock
        self._steady = SteadyReader(sock, self._endpoint.timeout)
        self._file = io.BufferedReader(self._steady, 256 * 1024)

    def _greeting(self) -> None:
        try:
            self.status("greeting")
        except Pop3Refused as error:
            raise MailboxProtocolError(f"{self._endpoint.where} accepts no connection.") from error

    def _ask_capabilities(self) -> None:
        """CAPA (RFC 2449 5); servers without it have the commands of RFC 1939, perhaps."""
        try:
            lines = self.run_list(b"CAPA")
        except Pop3Refused:
            lines = []
        words = [line.decode("ascii", "replace").upper().split() for line in lines]
        self.capabilities = {found[0]: found[1:] for found in words if found and found[0] not in self._endpoint.without}

    def _stls(self) -> None:
        """RFC 2595 4."""
        if "STLS" not in self.capabilities:
            raise EncryptionRequired(f"{self._endpoint.where} does not offer STLS.")
        self.run(b"STLS")
        self._use(secured(self._socket(), self._endpoint))
        self._ask_capabilities()  # what was announced in clear text does not count

    def _log_in(self) -> None:
        endpoint = self._endpoint
        if endpoint.username is None or (endpoint.secret is None and endpoint.token is None):
            raise AuthenticationRefused(f"There is no user name or password for {endpoint.where}.")
        refuse_clear_text_login(self._socket(), endpoint)
        mechanisms = self.capabilities.get("SASL", [])
        if endpoint.token is not None:
            self._authenticate(token_exchange(endpoint, mechanisms))
        elif endpoint.secret is not None and "PLAIN" in mechanisms:
            self._authenticate(plain(endpoint.username, endpoint.secret))
        elif endpoint.secret is not None:
            self._user_and_password(endpoint.username, endpoint.secret.reveal())

    def _authenticate(self, exchange: Exchange) -> None:
        """AUTH (RFC 5034). The first response waits for the server: tokens are longer than a command line may be."""
        self.send(b"AUTH " + exchange.mechanism)
        replies = iter((exchange.initial, *exchange.later))
        while (line := self._line()).startswith(b"+") and not line.startswith(b"+OK"):
            reply = next(replies, None)
            if reply is None:
                raise MailboxProtocolError(f"{self._endpoint.where} asks for more than there is to say.")
            self.send(reply)
        self._judge("AUTH", line)

    def _user_and_password(self, username: str, password: str) -> None:
        if any(character in "\r\n\0" for character in username + password):
            raise AuthenticationRefused(f"{self._endpoint.where} can take no user name or password with a line break.")
        self.run(b"USER " + username.encode())
        self.run(b"PASS " + password.encode())

    # -- the wire -------------------------------------------------------------------------------------------------------------

    def _judge(self, name: str, line: bytes) -> bytes:
        if line.startswith(b"+OK"):
            return line[3:].strip()
        if not line.startswith(b"-ERR"):
            self.close()
            raise MailboxProtocolError(f"{self._endpoint.where} gives answers that are no POP3.")
        error = pop3_error(name, line.decode("utf-8", "replace"), where=self._endpoint.where)
        raise Pop3Refused(str(error)) if type(error) is MailboxProtocolError else error

    def _line(self) -> bytes:
        if self._steady is not None:
            self._steady.restart()
        with self._io():
            line = self._reader().readline(MAX_STATUS + 1)
            if len(line) > MAX_STATUS:
                raise MailboxProtocolError(f"{self._endpoint.where} sent a line of more than {MAX_STATUS} bytes.")
            if not line.endswith(b"\n"):
                raise ConnectionFailed(f"{self._endpoint.where} closed the connection.")
        return line.rstrip(b"\r\n")

    def _io(self) -> AbstractContextManager[None]:
        return connection_errors(self._endpoint, self.close)

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return self._sock

    def _reader(self) -> io.BufferedReader:
        if self._file is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return self._file


def _name(command: bytes) -> str:
    return command.split(b" ", 1)[0].decode("ascii")
