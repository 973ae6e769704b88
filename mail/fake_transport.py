"""The in-memory twin of an SMTP transport. It behaves like the real one, so that tests need no server and no mocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mail.delivery import SendReport
from mail.errors import ConnectionFailed, DeliveryUncertain
from mail.replies import SmtpReply, smtp_error


@dataclass(frozen=True, slots=True)
class FakeDelivery:
    """One mail that a FakeTransport took."""

    sender: str
    recipients: list[str]
    raw: bytes


class FakeTransport:
    """Takes mails and keeps them in `delivered`.

    `refuses` answers 550 to these recipients, `defers` 451 (a mapping gives the reply); `rejects_message` and `rejects_sender` answer
    the whole mail with that reply. `fails_before_dot` loses the connection while the body is sent, `drops_after_dot` takes the mail
    and never says so.
    """

    def __init__(
        self,
        *,
        refuses: Collection[str] | Mapping[str, SmtpReply] = (),
        defers: Collection[str] | Mapping[str, SmtpReply] = (),
        rejects_sender: SmtpReply | None = None,
        rejects_message: SmtpReply | None = None,
        fails_before_dot: bool = False,
        drops_after_dot: bool = False,
    ) -> None:
        self.replies = _replies(refuses, SmtpReply(550, "5.1.1 no such user")) | _replies(defers, SmtpReply(451, "4.7.1 greylisted"))
        self.rejects_sender = rejects_sender
        self.rejects_message = rejects_message
        self.fails_before_dot = fails_before_dot
        self.drops_after_dot = drops_after_dot
        self.delivered: list[FakeDelivery] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    @property
    def delivered_to(self) -> list[str]:
        """The recipients of all mails taken, in order."""
        return [recipient for delivery in self.delivered for recipient in delivery.recipients]

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        """See `smtp.SmtpTransport.send`."""
        if self.rejects_sender is not None:
            raise smtp_error(self.rejects_sender, "sender", where="fake:25")
        refused = {recipient: self.replies[recipient] for recipient in recipients if recipient in self.replies}
        accepted = [recipient for recipient in recipients if recipient not in refused]
        if not accepted:
            return SendReport([], refused, None)
        if self.fails_before_dot:
            raise ConnectionFailed("The connection to fake:25 was lost.")
        before_final_dot()
        if self.rejects_message is not None:
            raise smtp_error(self.rejects_message, "message", where="fake:25")
        self.delivered.append(FakeDelivery(sender, accepted, raw))
        if self.drops_after_dot:
            raise DeliveryUncertain("The connection to fake:25 was lost before it confirmed the mail.")
        return SendReport(accepted, refused, SmtpReply(250, "2.0.0 queued"))


def _replies(given: Collection[str] | Mapping[str, SmtpReply], usual: SmtpReply) -> dict[str, SmtpReply]:
    return dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, usual)
