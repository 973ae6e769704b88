"""Handing a mail to an SMTP server, with one call-back at the only moment that matters: just before the final dot.

Until the dot nothing has happened; after it and without a reply nobody knows. `smtplib` speaks the protocol, this module decides.
"""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from core.errors import InvalidInputError, MailroomError
from core.hosts import connect_checked
from mail.accounts import Endpoint, Security
from mail.delivery import SendReport
from mail.errors import ConnectionFailed, DeliveryUncertain, EncryptionRequired, MessageRejected
from mail.mime_build import needs_smtputf8
from mail.replies import SmtpReply, smtp_error
from mail.tls import client_context, handshake_error, refuse_clear_text_login, secured

_CHUNK = 256 * 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")
_ENDS_SESSION = {421, 530, 534, 535, 538}


class _CheckedSmtp(smtplib.SMTP):
    """smtplib over a socket to a checked address, under TLS from the first byte where the account says so."""

    def __init__(self, endpoint: Endpoint, local_hostname: str) -> None:
        self._endpoint = endpoint
        super().__init__(local_hostname=local_hostname, timeout=endpoint.timeout)
        self._host = endpoint.host  # the name STARTTLS checks the certificate for

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = connect_checked(host, port, allow_private=self._endpoint.allow_private, timeout=timeout)
        return secured(sock, self._endpoint) if self._endpoint.security is Security.TLS else sock


class SmtpTransport:
    """One connection for one mail after another. Use as a context manager; a lost connection is not reopened.

    Raises on entry: HostNotAllowed, ConnectionFailed, CertificateRefused, EncryptionRequired, AuthenticationRefused, ServerUnavailable.
    """

    def __init__(self, endpoint: Endpoint, *, local_hostname: str | None = None) -> None:
        self._endpoint = endpoint
        self._local_hostname = local_hostname
        self._smtp: _CheckedSmtp | None = None

    def __enter__(self) -> Self:
        smtp = _CheckedSmtp(self._endpoint, self._local_hostname or "localhost")
        self._smtp = smtp
        try:
            self._open(smtp)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._smtp is not None and error is None:
            try:
                self._smtp.putcmd("QUIT")  # nobody needs the answer, and a slow server would hold us
            except (OSError, smtplib.SMTPException):
                pass
        self.close()

    def close(self) -> None:
        """Closes the socket without a word. May be called twice."""
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            smtp.close()

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """One mail for several recipients (RFC 5321 3.3); the report says who was taken, and with what reply who was not.

        When nobody is taken, no body is sent and `before_final_dot` is not called. If it raises, the server has nothing. Raises
        SenderRejected, MessageRejected, Greylisted and the connection's errors while the mail is surely not delivered;
        DeliveryUncertain when nobody can know.
        """
        smtp = self._connected()
        body = _normalised(raw)
        with self._before_the_dot():
            self._announce(smtp, sender, recipients, body)
            refused = self._name_recipients(smtp, recipients)
            accepted = [recipient for recipient in recipients if recipient not in refused]
            if not accepted:
                self._reset(smtp)
                return SendReport([], refused, None)
            reply = _reply(smtp.docmd("DATA"))
            if reply.code != 354:
                self._refuse(reply, "message")
            try:
                _stream(smtp, body)
                before_final_dot()
            except BaseException:
                self.close()  # in the middle of a mail no other command can be said
                raise
        return SendReport(accepted, refused, self._finish(smtp))

    # -- opening --------------------------------------------------------------------------------------------------------------

    def _open(self, smtp: _CheckedSmtp) -> None:
        endpoint = self._endpoint
        with self._before_the_dot():
            greeting = _reply(smtp.connect(endpoint.host, endpoint.port))
            if greeting.code != 220:
                raise smtp_error(greeting, "connection", where=endpoint.where)
            sock = self._socket(smtp)
            smtp.local_hostname = self._local_hostname or _literal(sock)
            self._greet(smtp)
            if endpoint.security is Security.STARTTLS:
                self._starttls(smtp)
            if endpoint.username is not None and endpoint.secret is not None:
                refuse_clear_text_login(sock, endpoint)
                self._login(smtp, endpoint.username, endpoint.secret.reveal())

    def _greet(self, smtp: _CheckedSmtp) -> None:
        if not _reply(smtp.ehlo()).is_positive:
            reply = _reply(smtp.helo())
            if not reply.is_positive:
                raise smtp_error(reply, "connection", where=self._endpoint.where)

    def _starttls(self, smtp: _CheckedSmtp) -> None:
        """RFC 3207. smtplib forgets its buffer and what EHLO said in clear text."""
        if not smtp.has_extn("starttls"):
            raise EncryptionRequired(f"{self._endpoint.where} does not offer STARTTLS.")
        try:
            smtp.starttls(context=client_context(self._endpoint))
        except ssl.SSLError as error:
            raise handshake_error(error, self._endpoint) from error
        except smtplib.SMTPResponseException as error:
            raise smtp_error(_reply((error.smtp_code, error.smtp_error)), "connection", where=self._endpoint.where) from None
        self._greet(smtp)

    def _login(self, smtp: _CheckedSmtp, username: str, password: str) -> None:
        """One try with one mechanism (RFC 4954). smtplib would try them all, three wrong logins for one, and only ASCII."""
        offered = smtp.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in offered:
            words = [f"\0{username}\0{password}"]
            reply = _reply(smtp.docmd("AUTH", f"PLAIN {_base64(words.pop())}"))
        elif "LOGIN" in offered:
            words = [password, username]
            reply = _reply(smtp.docmd("AUTH", "LOGIN"))
        else:
            raise EncryptionRequired(f"{self._endpoint.where} offers no way to log in on this connection that we know.")
        while reply.code == 334 and words:
            reply = _reply(smtp.docmd(_base64(words.pop())))
        if reply.code != 235:
            raise smtp_error(reply, "login", where=self._endpoint.where)

    # -- sending --------------------------------------------------------------------------------------------------------------

    def _announce(self, smtp: _CheckedSmtp, sender: str, recipients: Sequence[str], body: bytes) -> None:
        options = []
        if smtp.has_extn("size"):
            limit = smtp.esmtp_features["size"].strip()
            if limit.isdigit() and 0 < int(limit) < len(body):
                raise MessageRejected(f"{self._endpoint.where} takes mails of at most {limit} bytes; this one has {len(body)}.")
            options.append(f"SIZE={len(body)}")
        if smtp.has_extn("8bitmime"):
            options.append("BODY=8BITMIME")
        elif not body.isascii():
            raise MessageRejected(f"{self._endpoint.where} takes no 8-bit text, and the mail holds some.")
        if needs_smtputf8([sender, *recipients]):
            if not smtp.has_extn("smtputf8"):
                raise MessageRejected(f"{self._endpoint.where} takes no addresses with other than ASCII letters.")
            smtp.command_encoding = "utf-8"
            options.append("SMTPUTF8")
        reply = _reply(smtp.docmd("MAIL", f"FROM:{_path(sender)}{''.join(' ' + option for option in options)}"))
        if not reply.is_positive:
            self._refuse(reply, "sender")

    def _name_recipients(self, smtp: _CheckedSmtp, recipients: Sequence[str]) -> dict[str, SmtpReply]:
        refused: dict[str, SmtpReply] = {}
        for recipient in recipients:
            reply = _reply(smtp.docmd("RCPT", f"TO:{_path(recipient)}"))
            if reply.code in _ENDS_SESSION:  # says something about us, not about the recipient
                self._refuse(reply, "recipient")
            if not reply.is_positive:
                refused[recipient] = reply
        return refused

    def _refuse(self, reply: SmtpReply, stage: str) -> None:
        """Leaves the session ready for the next mail, and raises what the reply means."""
        if self._smtp is not None and reply.code not in _ENDS_SESSION:
            self._reset(self._smtp)
        raise smtp_error(reply, stage, where=self._endpoint.where)

    def _reset(self, smtp: _CheckedSmtp) -> None:
        """RSET (RFC 5321 4.1.1.5). Its failure only means that this connection cannot be used again."""
        try:
            smtp.docmd("RSET")
        except (OSError, smtplib.SMTPException):
            self.close()

    def _finish(self, smtp: _CheckedSmtp) -> SmtpReply:
        """Writes the dot and reads the verdict. From here on a lost connection proves nothing (RFC 5321 4.2.5, RFC 1047)."""
        try:
            smtp.send(b".\r\n")
            reply = _reply(smtp.getreply())
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            raise DeliveryUncertain(f"The connection to {self._endpoint.where} was lost before it confirmed the mail.") from error
        except BaseException:
            self.close()
            raise
        if not 200 <= reply.code < 300 and not 400 <= reply.code < 600:
            self.close()
            raise DeliveryUncertain(f"{self._endpoint.where} gave an answer to the mail that means nothing ({reply.code}).")
        if not reply.is_positive:
            self._refuse(reply, "message")
        return reply

    @contextmanager
    def _before_the_dot(self) -> Iterator[None]:
        """Anything that breaks in here broke before the mail was handed over: the connection is closed and the server drops it."""
        try:
            yield
        except MailroomError as error:
            if isinstance(error, ConnectionFailed):
                self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise ConnectionFailed(f"{self._endpoint.where} did not answer within {self._endpoint.timeout:g} s.") from error
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            raise ConnectionFailed(f"The connection to {self._endpoint.where} was lost.") from error
        except BaseException:
            self.close()
            raise

    def _connected(self) -> _CheckedSmtp:
        if self._smtp is None or self._smtp.sock is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return self._smtp

    def _socket(self, smtp: _CheckedSmtp) -> socket.socket:
        if smtp.sock is None:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        return smtp.sock


def _stream(smtp: _CheckedSmtp, body: bytes) -> None:
    """The body with leading dots doubled (RFC 5321 4.5.2), in pieces, without the final dot."""
    stuffed = body.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    for start in range(0, len(stuffed), _CHUNK):
        smtp.send(stuffed[start : start + _CHUNK])


def _normalised(raw: bytes) -> bytes:
    """CRLF everywhere and at the end. A bare line feed before a dot is how one mail is smuggled inside another."""
    body = _LINE_END.sub(b"\r\n", raw)
    return body if body.endswith(b"\r\n") else body + b"\r\n"


def _path(address: str) -> str:
    """`<address>` (RFC 5321 4.1.2). Raises InvalidInputError when it could hold another command."""
    if any(character in "<> \r\n\0\t" for character in address):
        raise InvalidInputError("An envelope address holds a character that is not allowed in it.")
    return f"<{address}>"


def _reply(answer: tuple[int, bytes | str]) -> SmtpReply:
    code, text = answer
    return SmtpReply(code, text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _literal(sock: socket.socket) -> str:
    """Our own address as EHLO wants it without a host name (RFC 5321 4.1.3)."""
    ip = str(sock.getsockname()[0])
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"
