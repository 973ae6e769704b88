"""Handing a mail to an SMTP server, with one call-back at the only moment that matters: just before the final dot.

Until the dot nothing has happened; after it and without a reply nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from core.errors import InvalidInputError
from mail.accounts import Endpoint
from mail.delivery import SendReport
from mail.errors import ConnectionFailed, DeliveryUncertain, MessageRejected
from mail.mime_build import needs_smtputf8
from mail.replies import SmtpReply, smtp_error
from mail.seven_bit import in_seven_bits
from mail.smtp_connection import BrokenReply, SmtpConnection

_CHUNK = 256 * 1024
_GROUP = 100
"""Recipients in one write: the replies to more might fill the buffers of both sides while we still write (RFC 2920 3.1)."""
_MAIL, _VERDICT = 4, 3
"""Time-outs for all of a mail up to the dot, and for the reply to the dot, which servers take longest with (RFC 5321 4.5.3.2.6)."""
_SIZE = re.compile(r"[0-9]{1,15}")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_ENDS_SESSION = {421, 530, 534, 535, 538}
_NO_PATH = re.compile(r"[<> \r\n\0\t]")
_XTEXT = re.compile(r"[^!-*,-<>-~]")


class SmtpTransport:
    """One connection for one mail after another. Use as a context manager; a lost connection is not reopened.

    Raises on entry: HostNotAllowed, ConnectionFailed, CertificateRefused, EncryptionRequired, AuthenticationRefused, ServerUnavailable.
    `envelope_id` comes back in delivery reports from servers that know DSN (RFC 3461); it may change from mail to mail.
    """

    def __init__(self, endpoint: Endpoint, *, local_hostname: str | None = None, envelope_id: str = "") -> None:
        self.envelope_id = envelope_id
        self._endpoint = endpoint
        self._connection = SmtpConnection(endpoint, local_hostname)
        self._is_between_mails = True

    def __enter__(self) -> Self:
        self._connection.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self.is_open:
            self._connection.quit()
        self.close()

    def close(self) -> None:
        """Closes the socket without a word. May be called twice."""
        self._connection.close()

    def quit(self) -> None:
        """Closes it with a word, and waits for none."""
        if self.is_open:
            self._connection.quit()

    @property
    def is_open(self) -> bool:
        """Whether another mail may be said on it."""
        return self._connection.is_open

    @property
    def is_ready(self) -> bool:
        """Open, and not in the middle of a mail: an exception from outside (a time limit) may strike anywhere."""
        return self.is_open and self._is_between_mails

    @property
    def is_silent(self) -> bool:
        """Whether the server has said nothing since its last reply."""
        return self._connection.is_silent

    def answers(self) -> bool:
        """Whether the server is still there (RSET, RFC 5321 4.1.1.5). Closed if not."""
        self._connection.within(1)
        self._reset()
        return self.is_open

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """One mail for several recipients (RFC 5321 3.3); the report says who was taken, and with what reply who was not.

        When nobody is taken, no body is sent and `before_final_dot` is not called. If it raises, the server has nothing. Raises
        SenderRejected, MessageRejected, Greylisted and the connection's errors while the mail is surely not delivered;
        DeliveryUncertain when nobody can know.
        """
        if not self.is_open:
            raise ConnectionFailed(f"The connection to {self._endpoint.where} is closed.")
        self._connection.within(_MAIL)
        with self._connection.lost_means_unsent():
            body = self._fitting(_normalised(raw))
            mail = f"MAIL FROM:{_path(sender)}{self._mail_options([sender, *recipients], body)}\r\n"
            naming = [f"RCPT TO:{_path(recipient)}{self._recipient_options(recipient)}\r\n" for recipient in recipients]
            self._is_between_mails = False
            replies, go_on = self._pipelined(mail, naming) if self._offers("PIPELINING") else self._in_turns(mail, naming)
            refused = {recipient: reply for recipient, reply in zip(recipients, replies, strict=True) if not reply.is_positive}
            accepted = [recipient for recipient in recipients if recipient not in refused]
            if not accepted:
                self._leave_empty(go_on)
                return SendReport([], refused, None)
            if go_on is None or go_on.code != 354:
                self._refuse(go_on or SmtpReply(503), "message")
            try:
                self._stream(body)
                self._listen()
                before_final_dot()
                self._listen()
            except BaseException:  # a limit or a person may strike anywhere: in the middle of a mail no other command can be said
                self.close()
                raise
        return SendReport(accepted, refused, self._finish(refused))

    # -- the envelope ---------------------------------------------------------------------------------------------------------

    def _pipelined(self, mail: str, naming: Sequence[str]) -> tuple[list[SmtpReply], SmtpReply | None]:
        """Sender, recipients and DATA in as few writes as may be (RFC 2920 3.1): every reply is read before one is acted on."""
        replies: list[SmtpReply] = []
        go_on: SmtpReply | None = None
        for start in range(0, len(naming), _GROUP):
            group = [*([mail] if start == 0 else []), *naming[start : start + _GROUP]]
            is_last = start + _GROUP >= len(naming)
            self._connection.write("".join([*group, *(["DATA\r\n"] if is_last else [])]).encode("utf-8"))
            replies += [self._own_fault(self._connection.read()) for _ in group]
            if is_last:
                go_on = self._connection.read()
            elif not replies[0].is_positive or replies[-1].is_full_house:
                break  # whoever goes on asking is taken for a spammer
        if not replies[0].is_positive:
            if go_on is not None and go_on.code == 354:
                self.close()  # it waits for a body nobody is to get
            self._refuse(replies[0], "sender")
        return self._named(replies[1:], len(naming), go_on)

    def _in_turns(self, mail: str, naming: Sequence[str]) -> tuple[list[SmtpReply], SmtpReply | None]:
        """One command, one reply; DATA only when somebody is taken."""
        say = self._connection.say
        reply = say(mail[:-2])
        if not reply.is_positive:
            self._refuse(reply, "sender")
        replies: list[SmtpReply] = []
        for each in naming:
            replies.append(self._own_fault(say(each[:-2])))
            if replies[-1].is_full_house:
                break
        return self._named(replies, len(naming), None)

    def _named(self, replies: list[SmtpReply], asked: int, go_on: SmtpReply | None) -> tuple[list[SmtpReply], SmtpReply | None]:
        """With the last reply for all who were not named any more after it, and DATA said if it was not."""
        everybody = replies + replies[-1:] * (asked - len(replies))
        if go_on is None and any(reply.is_positive for reply in replies):
            go_on = self._connection.say("DATA")
        return everybody, go_on

    def _own_fault(self, reply: SmtpReply) -> SmtpReply:
        """Raises what a reply means that says something about us, and not about a sender or a recipient."""
        if reply.code in _ENDS_SESSION:
            self._refuse(reply, "recipient")
        return reply

    def _leave_empty(self, go_on: SmtpReply | None) -> None:
        """Nobody is taken. A server that wants the body all the same is left: an empty mail would say that there is one."""
        if go_on is not None and (go_on.code == 354 or go_on.code in _ENDS_SESSION):
            self.close()
        else:
            self._reset()

    def _mail_options(self, addresses: Sequence[str], body: bytes) -> str:
        options = []
        if self._offers("SIZE"):
            options.append(f" SIZE={len(body)}")
        if self._offers("8BITMIME"):
            options.append(" BODY=8BITMIME")
        if needs_smtputf8(addresses):
            if not self._offers("SMTPUTF8"):
                raise MessageRejected(f"{self._endpoint.where} takes no addresses with other than ASCII letters.")
            options.append(" SMTPUTF8")
        if self._offers("DSN") and self.envelope_id:
            options.append(f" RET=HDRS ENVID={_xtext(self.envelope_id)}")
        return "".join(options)

    def _recipient_options(self, recipient: str) -> str:
        """Reports about failures and delays (RFC 3461 4.1), naming the recipient as we know them (4.2)."""
        if not (self._offers("DSN") and self.envelope_id):
            return ""
        original = f" ORCPT=rfc822;{_xtext(recipient)}" if recipient.isascii() else ""
        return f" NOTIFY=FAILURE,DELAY{original}"

    def _fitting(self, body: bytes) -> bytes:
        """The body as this server can take it (RFC 1870, RFC 6152). Raises MessageRejected."""
        where = self._endpoint.where
        if not body.isascii() and not self._offers("8BITMIME"):
            narrow = in_seven_bits(body)
            if narrow is None:
                raise MessageRejected(f"{where} takes no 8-bit text, and the mail holds some.")
            body = _normalised(narrow)
        limit = self._connection.extensions.get("SIZE", "").strip()
        if _SIZE.fullmatch(limit) and 0 < int(limit) < len(body):
            raise MessageRejected(f"{where} takes mails of at most {limit} bytes; this one has {len(body)}.")
        return body

    def _offers(self, extension: str) -> bool:
        return extension in self._connection.extensions

    # -- the body and the verdict ---------------------------------------------------------------------------------------------

    def _stream(self, body: bytes) -> None:
        """The body with leading dots doubled (RFC 5321 4.5.2), in pieces, without the final dot."""
        stuffed = body.replace(b"\r\n.", b"\r\n..")
        if stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        view = memoryview(stuffed)
        for start in range(0, len(stuffed), _CHUNK):
            self._connection.write(view[start : start + _CHUNK])

    def _listen(self) -> None:
        """What a server says before the dot is about the mail, and an end; a good word there would be taken for its verdict."""
        if self._connection.is_silent:
            return
        reply = self._connection.read()
        self.close()
        if reply.code < 400:
            raise BrokenReply("a reply to nothing")
        raise smtp_error(reply, "message", where=self._endpoint.where)

    def _finish(self, refused: Mapping[str, SmtpReply]) -> SmtpReply:
        """Writes the dot and reads the verdict. From here on a lost connection proves nothing (RFC 5321 4.2.5, RFC 1047)."""
        where = self._endpoint.where
        self._connection.within(_VERDICT, silences=_VERDICT)
        try:
            self._connection.write(b".\r\n")
            reply = self._connection.read()
        except OSError as error:
            self.close()
            raise DeliveryUncertain(f"The connection to {where} was lost before it confirmed the mail.", refused) from error
        except BaseException:  # a time limit too: the reply that is still to come would be taken for another mail's
            self.close()
            raise
        if not 200 <= reply.code < 300 and not 400 <= reply.code < 600:
            self.close()
            raise DeliveryUncertain(f"{where} gave an answer to the mail that means nothing ({reply.code}).", refused)
        if not reply.is_positive:
            self._refuse(reply, "message")
        self._is_between_mails = True
        return reply

    def _refuse(self, reply: SmtpReply, stage: str) -> None:
        """Leaves the session ready for the next mail, or closed, and raises what the reply means."""
        if reply.code in _ENDS_SESSION:
            self.close()
        elif self.is_open:
            self._reset()
        raise smtp_error(reply, stage, where=self._endpoint.where)

    def _reset(self) -> None:
        """RSET (RFC 5321 4.1.1.5). Its failure only means that this connection cannot be used again."""
        try:
            self._is_between_mails = self._connection.say("RSET").is_positive
            if not self._is_between_mails:
                self.close()
        except (OSError, ConnectionFailed):
            self.close()


def _normalised(raw: bytes) -> bytes:
    """CRLF everywhere and at the end. A bare line feed before a dot is how one mail is smuggled inside another."""
    ends = raw.count(b"\r\n")
    body = raw if raw.count(b"\n") == ends and raw.count(b"\r") == ends else _LINE_END.sub(b"\r\n", raw)
    return body if body.endswith(b"\r\n") else body + b"\r\n"


def _path(address: str) -> str:
    """`<address>` (RFC 5321 4.1.2). Raises InvalidInputError when it could hold another command."""
    if _NO_PATH.search(address):
        raise InvalidInputError("An envelope address holds a character that is not allowed in it.")
    return f"<{address}>"


def _xtext(text: str) -> str:
    """`+` and `=` and what is not printable as `+XX` (RFC 3461 4)."""
    return _XTEXT.sub(lambda match: f"+{ord(match.group()):02X}", text)
