"""Mails that somebody wants to come twice or to be lost: unlucky moments, crowds, logins that are refused, reports that lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, update

import actors.carrying
from core.clock import now
from core.errors import InvalidInputError, Snooze
from mail.accounts import Endpoint, Secret
from mail.bounces import BounceReport
from mail.delivery import SendReport
from mail.errors import AuthenticationRefused, DeliveryUncertain
from mail.fake import FakeTransport
from mail.oauth import Token
from mail.replies import SmtpReply
from storage.models import OutboundRecipient, Suppression
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from tests.unit.actor_world import Actors, acting
from tests.unit.outbox_world import Box

__all__ = ["acting"]
LATER = SmtpReply(451, "4.7.1 later")


@pytest.fixture
def box(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(acting, monkeypatch)


class LostProcess(BaseException):
    """Not an error that anybody handles: the process is gone."""


class Lost(FakeTransport):
    """Takes the mail; then the process is gone."""

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        super().send(sender, recipients, raw, before_final_dot)
        raise LostProcess


class Crowded(FakeTransport):
    """Takes some at a time."""

    def __init__(self, most: int, reply: SmtpReply) -> None:
        super().__init__()
        self.most, self.reply = most, reply

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        self.replies = dict.fromkeys(recipients[self.most :], self.reply)
        return super().send(sender, recipients, raw, before_final_dot)


def become_due(box: Box, email_id: str) -> None:
    """As if the wait were over, and known to have been one."""
    box.set(email_id, next_retry_at=now() - timedelta(seconds=1))
    waits = OutboundRecipient.email_id == email_id, OutboundRecipient.next_retry_at.is_not(None)
    with box.world.record.session() as session:
        session.execute(update(OutboundRecipient).where(*waits).values(next_retry_at=now() - timedelta(seconds=1)))


# -- what nobody knows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_lost", [False, True], ids=["no answer", "process lost"])
def test_who_was_put_off_and_then_offered_the_mail_does_not_get_it_twice(box: Box, is_lost: bool) -> None:
    email_id = box.accept("bob@x.test", "late@x.test")
    with pytest.raises(Snooze):
        box.run(email_id, FakeTransport(defers={"bob@x.test": LATER, "late@x.test": SmtpReply(451, "4.7.1 wait 5 hours")}))
    box.set(email_id, next_retry_at=None)
    with box.world.record.session() as session:
        due = OutboundRecipient.email_id == email_id, OutboundRecipient.address == "bob@x.test"
        session.execute(update(OutboundRecipient).where(*due).values(next_retry_at=now() - timedelta(seconds=1)))
    via = Lost() if is_lost else FakeTransport(drops_after_dot=True)
    with pytest.raises((DeliveryUncertain, LostProcess)):
        box.run(email_id, via, number=2)
    assert via.delivered_to == ["bob@x.test"]
    if is_lost:
        with pytest.raises(DeliveryUncertain):
            box.run(email_id, number=3)
    with box.world.record.session(box.ann) as session:
        assert Outbox(session).resolve(email_id, "sent").status == "pending"  # late waits still
    assert {address: each.status for address, each in box.people(email_id).items()} == {"bob@x.test": "sent", "late@x.test": "pending"}


# -- crowds -------------------------------------------------------------------------------------------------------------------


def test_a_mail_for_more_than_a_server_takes_in_one_is_refused_at_once(box: Box) -> None:
    with pytest.raises(InvalidInputError, match="at most 1,000 recipients"):
        box.accept(*(f"p{number}@x.test" for number in range(1001)))
    with pytest.raises(InvalidInputError, match="at most 100 attachments"):
        box.accept(attachment_ids=["x"] * 101)


@pytest.mark.parametrize("reply", [SmtpReply(452, "4.5.3 Error: too many recipients"), SmtpReply(552, "Too many recipients")])
def test_a_server_that_takes_a_few_at_a_time_gets_all_of_them_soon_and_each_once(box: Box, reply: SmtpReply) -> None:
    people = [f"p{number}@x.test" for number in range(30)]
    email_id, via = box.accept(*people), Crowded(2, reply)
    for _ in range(14):
        with pytest.raises(Snooze) as snooze:
            box.run(email_id, via)
        assert snooze.value.delay <= 1
        become_due(box, email_id)
    assert box.run(email_id, via)["recipients_sent"] == 30
    assert sorted(via.delivered_to) == sorted(people)


def test_a_server_that_takes_nobody_for_being_too_many_is_not_hurried(box: Box) -> None:
    email_id = box.accept("bob@x.test")
    with pytest.raises(Snooze) as snooze:
        box.run(email_id, Crowded(0, SmtpReply(452, "4.5.3 too many recipients today")))
    assert snooze.value.delay > 200
    assert box.row(email_id).attempts == 1


# -- logins -------------------------------------------------------------------------------------------------------------------


def test_a_token_that_is_refused_before_its_time_is_replaced_once(box: Box) -> None:
    given: list[str] = []

    def refresh(*_given: Any, **_named: Any) -> Token:
        given.append(f"token {len(given)}")
        return Token(Secret(given[-1]), 3600, None)

    class Strict(FakeTransport):
        """Takes the second token only."""

        def __init__(self, endpoint: Endpoint) -> None:
            super().__init__()
            self.endpoint = endpoint

        def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
            seen.append(self.endpoint.token.reveal() if self.endpoint.token else "")
            if seen[-1] != accepted:
                raise AuthenticationRefused("The server refused the account (535).")
            return super().send(sender, recipients, raw, before_final_dot)

    box.patch.setattr("mail.oauth.refresh", refresh)
    oauth = {"oauth_token_url": "https://id.test/token", "oauth_client_id": "mailroom", "oauth_refresh_token": "refresh"}
    box.client = box.world.account(box.ann, smtp_username="ann", **oauth)
    for accepted, expected in (("token 1", ["token 0", "token 1"]), ("none", ["token 1", "token 2"])):
        seen: list[str] = []
        email_id = box.accept()
        box.patch.setattr(actors.carrying, "transport_to", lambda _email, endpoint: Strict(endpoint))
        with box.world.attempt(box.ann):
            if accepted == "none":
                with pytest.raises(AuthenticationRefused):
                    actors.outbound.send_outbound_email(email_id)
            else:
                assert actors.outbound.send_outbound_email(email_id)["recipients_sent"] == 1
        assert seen == expected


# -- reports ------------------------------------------------------------------------------------------------------------------


def test_a_report_about_thousands_asks_the_record_a_few_times(box: Box) -> None:
    email_id = box.accept("bob@x.test", "cy@x.test")
    box.run(email_id)
    statements: list[str] = []
    message_id = box.row(email_id).message_id
    for reference in (message_id, "<unknown@x.test>"):
        reports = [BounceReport(reference, "nothing", f"p{number}@x.test", "failed", "5.1.1") for number in range(1000)]
        reports += [BounceReport(reference, None, "BOB@x.test", action, "5.1.1") for action in ("relayed", "failed", "failed")]
        with box.world.record.session(box.ann) as session:
            event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
            OutboundEmails(session).came_back(reports)
    assert len(statements) < 30
    assert {address: each.status for address, each in box.people(email_id).items()} == {"bob@x.test": "bounced", "cy@x.test": "sent"}
    assert box.world.record.count(Suppression) == 1
