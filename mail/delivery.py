"""Delivering one mail: who got it, who never will, and who may later. Knows no protocol; a transport hands it replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.errors import InvalidInputError
from mail.replies import DEFAULT_RETRY_AFTER, SmtpReply, refusal_sentence, retry_hint

NEXT_MAIL_SECONDS = 1.0
"""Until those are offered the mail who were too many for one."""


@dataclass(frozen=True, slots=True)
class SendReport:
    """What a transport did with a mail: the recipients it was delivered for, the refused ones with their replies, the final reply."""

    accepted: list[str]
    refused: Mapping[str, SmtpReply]
    reply: SmtpReply | None


class Transport(Protocol):
    """A way to hand over a mail (`smtp.SmtpTransport`, `fake.FakeTransport`)."""

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """Hands the mail over; see `SmtpTransport.send` for what it promises and raises."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """One recipient who did not get the mail. `code` is the SMTP reply code, `enhanced` the one of RFC 3463 or empty, `reason` a
    sentence without the address. `hint`: the seconds after which the server wants to see it again, if it said so. `is_left`: it took
    others, and wants these in another mail."""

    address: str
    code: int
    permanent: bool
    reason: str
    enhanced: str = ""
    hint: float | None = None
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """How one try ended. `retry_after` (seconds) is set when somebody was refused for now only; ask again for those alone."""

    accepted: list[str]
    refused: list[Refusal]
    retry_after: float | None
    reply_code: int | None
    enhanced: str = ""

    @property
    def deferred(self) -> list[str]:
        """Those to try again."""
        return [refusal.address for refusal in self.refused if not refusal.permanent]

    @property
    def bounced(self) -> list[str]:
        """Those who will never get it."""
        return [refusal.address for refusal in self.refused if refusal.permanent]


def deliver(
    raw: bytes, *, sender: str, recipients: Sequence[str], via: Transport, before_final_dot: Callable[[], None] = lambda: None
) -> DeliveryOutcome:
    """Hands the mail to the transport for all recipients, each once. Refused ones stand in the outcome, even if it is all of them.

    `before_final_dot` is called at the point of no return, not at all when nobody is accepted; if it raises, nothing was sent.
    Raises what stops the mail for everybody: SenderRejected, MessageRejected, AuthenticationRefused (permanent); Greylisted,
    ConnectionFailed, ServerUnavailable (transient, surely not delivered); DeliveryUncertain (nobody knows).
    """
    unique = list(dict.fromkeys(recipients))
    if not unique:
        raise InvalidInputError("A mail needs at least one recipient.")
    report = via.send(sender, unique, raw, before_final_dot)
    refused = refusals(report.refused, took_others=bool(report.accepted))
    waits = [refusal.hint or DEFAULT_RETRY_AFTER for refusal in refused if not refusal.permanent]
    code = report.reply.code if report.reply else (refused[0].code if refused else None)
    enhanced = report.reply.enhanced if report.reply else ""
    return DeliveryOutcome(report.accepted, refused, max(waits, default=None), code, enhanced)


def refusals(replies: Mapping[str, SmtpReply], *, took_others: bool) -> list[Refusal]:
    """Who was refused, from the replies by address."""
    return [_refusal(address, reply, is_left=took_others and reply.is_full_house) for address, reply in replies.items()]


def _refusal(address: str, reply: SmtpReply, *, is_left: bool) -> Refusal:
    reason = refusal_sentence(reply, "recipient", where="The mail server")
    is_final = reply.is_permanent and not reply.is_full_house
    hint = NEXT_MAIL_SECONDS if is_left else retry_hint(reply.text)
    return Refusal(address, reply.code, is_final, reason, reply.enhanced, hint, is_left)
