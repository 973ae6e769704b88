"""One connection to an SMTP server, up to the point where mails can be said: greeting, TLS, extensions, login (RFC 5321, 3207, 4954).

Written by hand because `smtplib` waits for a reply after each command, tries every way to log in, and knows only ASCII passwords.
"""

from __future__ import annotations

import base64
import re
import select
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from core.errors import MailroomError
from core.hosts import connect_checked
from mail.accounts import Endpoint, Security
from mail.errors import ConnectionFailed, EncryptionRequired
from mail.replies import SmtpReply, smtp_error
from mail.sasl import token_exchange
from mail.tls import client_context, handshake_error, refuse_clear_text_login, secured

LONGEST_LINE = 8192
"""Bytes. RFC 5321 4.5.3.1.5 says 512; servers with long texts say more."""
MOST_LINES = 200
OPENING = 2
"""Time-outs (`Endpoint.timeout`) that everything up to the login may take: a server that says a byte now and then is given up, too."""
_REPLY = re.compile(rb"([2-5][0-9]{2})([ -]|$)")


class BrokenReply(OSError):  # noqa: N818  (is handled as the loss of the connection that it is)
    """The server ended the connection in the middle, or what it says is no SMTP."""


class SlowServer(TimeoutError):  # noqa: N818
    """Something came each time, and too little in all."""


class SmtpConnection:
    """Commands out, replies in. Everything may raise OSError; `lost_means_unsent` says what that means before the final dot.

    Each read and write has the endpoint's time-out, and all of them together what `within` gave.

    `extensions` is what EHLO offered: the keyword in capitals to its parameters as they stood there.
    """

    def __init__(self, endpoint: Endpoint, local_hostname: str | None = None) -> None:
        self.endpoint = endpoint
        self.extensions: dict[str, str] = {}
        self._local_hostname = local_hostname
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._deadline = 0.0
        self._silences = 1

    @property
    def is_open(self) -> bool:
        """Whether nothing has gone wrong with it so far."""
        return self._socket is not None

    @property
    def is_silent(self) -> bool:
        """Whether the server has said nothing unasked: a reply nobody waits for, or an end, means that it wants no more of us."""
        sock = self._socket
        if sock is None or self._buffer:
            return False
        poll = select.poll()  # select() itself cannot name descriptors above 1023
        poll.register(sock, select.POLLIN)
        if isinstance(sock, ssl.SSLSocket):
            return not sock.pending() and (not poll.poll(0) or self._is_idle_tls(sock))
        return not poll.poll(0)

    def open(self) -> None:
        """Raises HostNotAllowed, ConnectionFailed, CertificateRefused, EncryptionRequired, AuthenticationRefused, ServerUnavailable."""
        endpoint = self.endpoint
        self.within(OPENING)
        try:
            with self.lost_means_unsent():
                sock = connect_checked(endpoint.host, endpoint.port, allow_private=endpoint.allow_private, timeout=endpoint.timeout)
                self._socket = secured(sock, endpoint) if endpoint.security is Security.TLS else sock
                greeting = self.read()
                if greeting.code != 220:
                    raise smtp_error(greeting, "connection", where=endpoint.where)
                self._greet()
                if endpoint.security is Security.STARTTLS:
                    self._starttls()
                self._login()
        except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
            self.close()
            raise

    def within(self, timeouts: float, *, silences: int = 1) -> None:
        """From now on all that is said and heard may take so many time-outs, and a reply may be so many of them away."""
        self._deadline = time.monotonic() + timeouts * self.endpoint.timeout
        self._silences = silences

    def close(self) -> None:
        """Without a word. May be called twice."""
        sock, self._socket = self._socket, None
        self._buffer.clear()
        if sock is not None:
            sock.close()

    def quit(self) -> None:
        """Says good-bye and does not wait: nobody needs the answer, and a slow server would hold us."""
        self.within(1)
        try:
            self.write(b"QUIT\r\n")
        except OSError:
            pass
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """All of it."""
        self._in_time().sendall(data)

    def say(self, command: str) -> SmtpReply:
        """One command and its reply."""
        self.write(command.encode("utf-8") + b"\r\n")
        return self.read()

    def read(self) -> SmtpReply:
        """The next reply, its lines joined (RFC 5321 4.2.1)."""
        lines: list[str] = []
        while True:
            line = self._line()
            match = _REPLY.match(line)
            if match is None or len(lines) == MOST_LINES:
                raise BrokenReply("not an SMTP reply")
            lines.append(line[4:].decode("utf-8", "replace"))
            if match.group(2) != b"-":
                return SmtpReply(int(match.group(1)), "\n".join(lines))

    @contextmanager
    def lost_means_unsent(self) -> Iterator[None]:
        """Anything that breaks in here broke before the mail was handed over: the connection is closed and the server drops it."""
        where = self.endpoint.where
        try:
            yield
        except MailroomError as error:
            if isinstance(error, ConnectionFailed):
                self.close()
            raise
        except SlowServer as error:
            self.close()
            raise ConnectionFailed(f"{where} answers too slowly.") from error
        except TimeoutError as error:
            self.close()
            raise ConnectionFailed(f"{where} did not answer within {self.endpoint.timeout:g} s.") from error
        except OSError as error:
            self.close()
            raise ConnectionFailed(f"The connection to {where} was lost.") from error
        except BaseException:  # a time limit too, which may strike anywhere: nothing stays open
            self.close()
            raise

    def _greet(self) -> None:
        """EHLO, and HELO for servers that know no better (RFC 5321 3.2)."""
        name = self._local_hostname or _literal(self._connected())
        reply = self.say(f"EHLO {name}")
        if reply.is_positive:
            self.extensions = _extensions(reply)
            return
        self.extensions = {}
        reply = self.say(f"HELO {name}")
        if not reply.is_positive:
            raise smtp_error(reply, "connection", where=self.endpoint.where)

    def _starttls(self) -> None:
        """RFC 3207. What was said in clear text is forgotten; what came with the reply was injected by somebody in between."""
        endpoint = self.endpoint
        if "STARTTLS" not in self.extensions:
            raise EncryptionRequired(f"{endpoint.where} does not offer STARTTLS.")
        reply = self.say("STARTTLS")
        if not reply.is_positive:
            raise smtp_error(reply, "connection", where=endpoint.where)
        if self._buffer:
            raise BrokenReply("clear text after STARTTLS")
        try:
            self._socket = client_context(endpoint).wrap_socket(self._connected(), server_hostname=endpoint.host)
        except OSError as error:
            raise handshake_error(error, endpoint) from error
        self._greet()

    def _login(self) -> None:
        """One try with one mechanism: each of several would count as a wrong login of its own."""
        endpoint = self.endpoint
        if endpoint.username is None or (endpoint.secret is None and endpoint.token is None):
            return
        refuse_clear_text_login(self._connected(), endpoint)
        offered = self.extensions.get("AUTH", "").upper().split()
        words = _words_with_password(offered, endpoint) if endpoint.token is None else _words_with_token(offered, endpoint)
        if not words:
            raise EncryptionRequired(f"{endpoint.where} offers no way to log in on this connection that we know.")
        reply = self.say(f"AUTH {words[0]}")
        for word in words[1:]:
            if reply.code != 334:
                break
            reply = self.say(word)
        if reply.code == 334:  # a question more than there are answers
            raise BrokenReply("AUTH does not end")
        if reply.code != 235:
            raise smtp_error(reply, "login", where=endpoint.where)

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LONGEST_LINE:
                raise BrokenReply("endless line")
            received = self._received()
            if not received:
                raise BrokenReply("the end of the connection")
            self._buffer += received
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        return line

    def _is_idle_tls(self, sock: ssl.SSLSocket) -> bool:
        """Whether what came was TLS' own business (a ticket, another key) and no word of the server's."""
        sock.settimeout(0)
        try:
            self._buffer += sock.recv(4096)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        return False

    def _in_time(self) -> socket.socket:
        """The socket for one read or write. Raises SlowServer when all of them have taken too long."""
        sock, left = self._connected(), self._deadline - time.monotonic()
        if left <= 0:
            raise SlowServer
        timeout = min(left, self.endpoint.timeout)
        if sock.gettimeout() != timeout:  # setting it asks the kernel
            sock.settimeout(timeout)
        return sock

    def _received(self) -> bytes:
        """What is there. A long wait is one of several: a time limit is heard between them only."""
        for _ in range(self._silences - 1):
            with suppress(TimeoutError):
                return self._in_time().recv(4096)
        return self._in_time().recv(4096)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionFailed(f"The connection to {self.endpoint.where} is closed.")
        return self._socket


def _words_with_token(offered: Sequence[str], endpoint: Endpoint) -> list[str]:
    exchange = token_exchange(endpoint, offered)
    return [f"{exchange.mechanism.decode()} {exchange.initial.decode()}", *(word.decode() for word in exchange.later)]


def _words_with_password(offered: Sequence[str], endpoint: Endpoint) -> list[str]:
    username, password = str(endpoint.username), endpoint.secret.reveal() if endpoint.secret is not None else ""
    if "PLAIN" in offered:
        return [f"PLAIN {_base64(f'{chr(0)}{username}{chr(0)}{password}')}"]
    if "LOGIN" in offered:
        return ["LOGIN", _base64(username), _base64(password)]
    return []


def _extensions(reply: SmtpReply) -> dict[str, str]:
    """What an EHLO reply offers; its first line is a greeting. `AUTH=` is how some said it before RFC 2554 was finished."""
    found: dict[str, str] = {}
    for line in reply.text.split("\n")[1:]:
        keyword, _, parameters = line.strip().replace("AUTH=", "AUTH ", 1).partition(" ")
        name = keyword.upper()
        found[name] = f"{found[name]} {parameters}" if name in found else parameters.strip()
    return found


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _literal(sock: socket.socket) -> str:
    """Our own address as EHLO wants it without a host name (RFC 5321 4.1.3)."""
    ip = str(sock.getsockname()[0])
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"
