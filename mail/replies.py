"""What a server's answer means: the one place where the codes of IMAP, POP3 and SMTP answers become error types.

The server's text is read for hints and never repeated: servers echo addresses and user names in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import MailroomError
from mail.errors import (
    AuthenticationRefused,
    FolderMissing,
    Greylisted,
    MailboxFull,
    MailboxProtocolError,
    MessageRejected,
    RecipientRejected,
    SenderRejected,
    ServerThrottled,
    ServerUnavailable,
)

DEFAULT_RETRY_AFTER = 300.0
"""Seconds; what greylisting servers commonly ask for."""
_LONGEST_HINT = 86_400.0

_THROTTLE = re.compile(r"throttl|too many|rate.?limit|exceeded.*(limit|bandwidth|connections)|try again later", re.IGNORECASE)
_TOO_MANY = re.compile(r"too many recipients", re.IGNORECASE)
_NOT_CONNECTED = re.compile(r"authenticated but not connected", re.IGNORECASE)  # Microsoft 365: too many logins, not a wrong password
_WAIT = re.compile(r"(\d{1,6})\s*(milliseconds?|ms|seconds?|secs?|minutes?|mins?|hours?)\b", re.IGNORECASE)
_UNITS = {"mi": 60.0, "ms": 0.001, "se": 1.0, "ho": 3600.0}
_ENHANCED = re.compile(r"^\s*([245]\.\d{1,3}\.\d{1,3})\b", re.ASCII)

_TRANSIENT_CODES = {"UNAVAILABLE", "INUSE", "CONTACTADMIN", "SERVERBUG", "EXPUNGEISSUED"}
_STORING = {"APPEND", "COPY", "MOVE", "UID"}
"""Commands that need room (UID COPY, UID MOVE). Of others OVERQUOTA means traffic, as on Gmail, which says so in words, too."""
_AUTH_CODES = {"AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED"}


def retry_hint(text: str) -> float | None:
    """Seconds to wait when the text names a time ("try again in 5 minutes"), at most a day; else None."""
    match = _WAIT.search(text)
    if match is None:
        return None
    unit = match.group(2).lower()
    factor = 0.001 if unit.startswith("milli") else _UNITS[unit[:2]]
    return min(_LONGEST_HINT, max(1.0, int(match.group(1)) * factor))


def imap_error(command: str, code: str, text: str, *, where: str) -> MailroomError:
    """The error for a NO, BAD or BYE: `code` is the bracketed response code in capitals without its arguments (RFC 9051 7.1, RFC 5530)."""
    is_full = code == "OVERQUOTA" and command in _STORING
    is_throttled = (code in {"LIMIT", "OVERQUOTA"} and not is_full) or _THROTTLE.search(text) is not None
    is_unavailable = code in _TRANSIENT_CODES or _NOT_CONNECTED.search(text) is not None
    is_login = command in {"LOGIN", "AUTHENTICATE"}
    if code in _AUTH_CODES or (is_login and not is_throttled and not is_unavailable):
        return AuthenticationRefused(f"{where} refused the user name or password.")
    if is_throttled:
        return ServerThrottled(f"{where} asks for a pause (answer to {command}).", retry_after=retry_hint(text))
    if is_unavailable:
        return ServerUnavailable(f"{where} cannot serve this account just now (answer to {command}).", retry_after=retry_hint(text))
    if command == "BYE":
        return ServerUnavailable(f"{where} closed the connection.")
    return _final(command, code, where, is_full=is_full)


def _final(command: str, code: str, where: str, *, is_full: bool) -> MailroomError:
    """What another try does not change."""
    if is_full:
        return MailboxFull(f"{where} has no room left in the mailbox; make some, and try again.")
    if code in {"NONEXISTENT", "TRYCREATE", "NOPERM"}:
        return FolderMissing(f"{where} has no such folder, or this account may not read it.")
    return MailboxProtocolError(f"{where} refused the command {command}.")


_POP3_CODE = re.compile(r"^-ERR\s+\[([A-Za-z/-]+)\]")
_LOCKED = re.compile(r"\block(ed)?\b|in use|busy|temporar", re.IGNORECASE)


def pop3_error(command: str, text: str, *, where: str) -> MailroomError:
    """The error for a -ERR line (RFC 2449 8, RFC 3206). Without a code only a login's refusal says something about the account."""
    match = _POP3_CODE.match(text)
    code = match.group(1).upper() if match else ""
    is_throttled = code == "LOGIN-DELAY" or _THROTTLE.search(text) is not None
    is_unavailable = code in {"IN-USE", "SYS/TEMP"} or _NOT_CONNECTED.search(text) is not None
    is_login = command in {"USER", "PASS", "AUTH"}
    if code == "AUTH":
        return AuthenticationRefused(f"{where} refused the user name or password.")
    if is_throttled:
        return ServerThrottled(f"{where} asks for a pause (answer to {command}).", retry_after=retry_hint(text))
    if is_unavailable or (not code and (is_login or command == "greeting") and _LOCKED.search(text)):
        return ServerUnavailable(f"{where} cannot serve this account just now (answer to {command}).", retry_after=retry_hint(text))
    if is_login and code != "SYS/PERM":
        return AuthenticationRefused(f"{where} refused the user name or password.")
    return MailboxProtocolError(f"{where} refused the command {command}.")


@dataclass(frozen=True, slots=True)
class SmtpReply:
    """A complete SMTP reply: the three-digit code and its text, lines joined (RFC 5321 4.2)."""

    code: int
    text: str = ""

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463), such as `5.1.1`, or an empty string."""
        match = _ENHANCED.match(self.text)
        return match.group(1) if match else ""

    @property
    def is_positive(self) -> bool:
        """2xx."""
        return 200 <= self.code < 300

    @property
    def is_permanent(self) -> bool:
        """5xx."""
        return 500 <= self.code < 600

    @property
    def is_full_house(self) -> bool:
        """To RCPT: no more recipients in this mail (RFC 5321 4.5.3.1.10: 452, which some still call 552)."""
        return self.code in {452, 552} and (self.enhanced[1:] == ".5.3" or _TOO_MANY.search(self.text) is not None)

    @property
    def number(self) -> str:
        """The codes as a person writes them: `550 5.1.1`."""
        return f"{self.code} {self.enhanced}".strip()

    @property
    def retry_after(self) -> float:
        """Seconds until another try makes sense."""
        return retry_hint(self.text) or DEFAULT_RETRY_AFTER


_ACCOUNT_CODES = {530, 534, 535, 538}
_MEANING = {
    "1.1": "there is no such mailbox",
    "1.2": "there is no such domain",
    "1.10": "the domain accepts no mail",
    "2.1": "the mailbox is disabled",
    "2.2": "the mailbox is full",
    "2.3": "the message is too large for the mailbox",
    "3.4": "the message is too large",
    "7.1": "the server's policy forbids it",
    "7.26": "the mail is not authenticated",
}
_BY_STAGE: dict[str, type[SenderRejected | RecipientRejected | MessageRejected]] = {
    "sender": SenderRejected,
    "recipient": RecipientRejected,
    "message": MessageRejected,
}


def refusal_sentence(reply: SmtpReply, what: str, *, where: str) -> str:
    """One sentence for people: who refused what, with which code, and what the code means."""
    meaning = _MEANING.get(reply.enhanced[2:], "")
    return f"{where} refused the {what} ({reply.number}){': ' + meaning if meaning else ''}."


def smtp_error(reply: SmtpReply, stage: str, *, where: str) -> MailroomError:
    """The error for a negative reply; `stage` is connection, login, sender, recipient or message.

    A 5xx at the connection or the login is the account's or the host's problem and says nothing about a recipient.
    """
    if reply.code == 421 or (stage == "connection" and not reply.is_permanent):
        return ServerUnavailable(f"{where} closes the connection ({reply.number}).", retry_after=retry_hint(reply.text))
    if stage == "login" and not reply.is_permanent:
        error = ServerThrottled if _THROTTLE.search(reply.text) else ServerUnavailable
        return error(f"{where} cannot check the password just now ({reply.number}).", retry_after=retry_hint(reply.text))
    if stage == "login" or reply.code in _ACCOUNT_CODES:
        return AuthenticationRefused(f"{where} refused the account ({reply.number}).")
    if stage == "connection":
        return SenderRejected(f"{where} does not accept mail from here ({reply.number}).")
    if reply.is_permanent:
        return _BY_STAGE[stage](refusal_sentence(reply, stage, where=where))
    return Greylisted(f"{where} takes the {stage} later ({reply.number}).", retry_after=reply.retry_after)
