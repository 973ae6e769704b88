"""The outbox's tasks: when a mail goes, who is left out, what of two runs, and what becomes of mails whose run is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

import actors.carrying
import actors.outbound
import actors.sent_copies
from core.clock import now
from core.errors import ConflictError, InvalidInputError, NotFoundError, Snooze
from core.ids import new_id
from core.tenancy import acting_as
from mail.bounces import BounceReport
from mail.delivery import DeliveryOutcome, SendReport
from mail.errors import ConnectionFailed, DeliveryUncertain, MessageRejected, RecipientRejected
from mail.fake import FakeTransport
from mail.replies import SmtpReply
from runs.current import RunRevoked, set_current_run
from storage.models import EmailClient, OutboundRecipient, Suppression
from storage.outcomes import Claim
from storage.repositories.outbound import OutboundEmails
from storage.repositories.outbox import Outbox
from storage.repositories.suppressions import Suppressions
from tests.unit.actor_world import Actors, acting
from tests.unit.outbox_world import Box, Meanwhile, SentFolder

__all__ = ["acting"]


@pytest.fixture
def box(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(acting, monkeypatch)


def test_a_row_of_the_outbox_is_sent(box: Box) -> None:
    email_id, via = box.accept("bob@x.test", "cy@x.test"), FakeTransport()
    result = box.run(email_id, via)
    assert (result["status"], result["recipients_sent"], result["message_id"]) == ("success", 2, box.row(email_id).message_id)
    assert sorted(via.delivered_to) == ["bob@x.test", "cy@x.test"]
    assert {(each.status, each.reply_code, each.enhanced_code) for each in box.people(email_id).values()} == {("sent", 250, "2.0.0")}
    assert box.run(email_id, via, number=2) == result
    assert len(via.delivered) == 1


def test_a_scheduled_mail_waits_for_its_time(box: Box) -> None:
    email_id, via = box.accept(scheduled_at=now() + timedelta(seconds=100)), FakeTransport()
    with pytest.raises(Snooze) as snooze:
        box.run(email_id, via)
    assert 95 < snooze.value.delay <= 100
    box.set(email_id, scheduled_at=now())
    assert box.run(email_id, via)["recipients_sent"] == 1


def test_a_mail_past_its_expiry_is_cancelled_and_never_sent_late(box: Box) -> None:
    email_id, via = box.accept(expires_at=now() - timedelta(seconds=1)), FakeTransport()
    result = box.run(email_id, via)
    assert (result["status"], result["sent_timestamp"], via.delivered) == ("cancelled", 0, [])
    assert (box.row(email_id).status, "expired" in str(box.row(email_id).last_error)) == ("cancelled", True)


def test_a_mail_that_expires_while_its_server_is_slow_is_not_sent_either(box: Box) -> None:
    email_id = box.accept(expires_at=now() + timedelta(hours=1))
    via = Meanwhile(lambda: box.set(email_id, expires_at=now() - timedelta(seconds=1)))
    assert box.run(email_id, via)["status"] == "cancelled"
    assert (via.delivered, box.row(email_id).status) == ([], "cancelled")


def test_a_mail_cancelled_in_the_last_moment_is_not_sent(box: Box) -> None:
    email_id = box.accept()

    def cancel() -> None:
        with box.world.record.session(box.ann) as session:
            Outbox(session).cancel(email_id)

    via = Meanwhile(cancel)
    assert box.run(email_id, via)["status"] == "cancelled"
    assert via.delivered == []
    assert box.run(email_id)["status"] == "cancelled"


def test_suppressed_addresses_are_not_offered_to_the_server(box: Box) -> None:
    email_id, via = box.accept("Gone@x.test", "bob@x.test"), FakeTransport()
    with box.world.record.session(box.ann) as session:
        Suppressions(session).add(box.ann.tenant_id, "gone@X.test", "manual")
    assert box.run(email_id, via)["recipients_sent"] == 1
    assert via.delivered_to == ["bob@x.test"]
    assert {address: each.status for address, each in box.people(email_id).items()} == {"Gone@x.test": "suppressed", "bob@x.test": "sent"}


def test_so_is_one_with_other_letters_however_it_is_written(box: Box) -> None:
    email_id, via = box.accept("MÜLLER@x.test", "bob@x.test"), FakeTransport()
    with box.world.record.session(box.ann) as session:
        Suppressions(session).add(box.ann.tenant_id, "Müller@x.test", "manual")
    box.run(email_id, via)
    assert via.delivered_to == ["bob@x.test"]


def test_another_tenants_list_is_not_asked(box: Box) -> None:
    email_id, via, gus = box.accept(), FakeTransport(), box.world.record.people.gus
    with box.world.record.session(gus) as session:
        Suppressions(session).add(gus.tenant_id, "bob@x.test", "manual")
    box.run(email_id, via)
    assert via.delivered_to == ["bob@x.test"]


def test_a_mail_for_suppressed_addresses_only_has_failed(box: Box) -> None:
    email_id, via = box.accept(), FakeTransport()
    with box.world.record.session(box.ann) as session:
        Suppressions(session).add(box.ann.tenant_id, "bob@x.test", "manual")
    with pytest.raises(RecipientRejected, match="suppressed"):
        box.run(email_id, via)
    assert (via.delivered, box.row(email_id).status) == ([], "failed")


def test_two_runs_never_send_to_the_same_recipient(box: Box) -> None:
    """The second run read the envelope before the first sent, and comes to its own mark after the first has put the mail off."""
    email_id, first = box.accept("now@x.test", "later@x.test"), FakeTransport(defers={"later@x.test"})

    def other_run() -> None:
        with pytest.raises(Snooze):
            box.run(email_id, first)

    second = Meanwhile(other_run)
    with pytest.raises(Snooze):
        box.run(email_id, second)
    assert (first.delivered_to, second.delivered_to) == (["now@x.test"], [])


def test_a_mail_another_run_is_sending_is_left_alone(box: Box) -> None:
    email_id = box.accept()
    box.enqueue(email_id, state="STARTED")
    box.set(email_id, status="sending", attempts=1)
    with pytest.raises(Snooze, match="Another run"):
        box.run(email_id)
    assert box.row(email_id).status == "sending"


def test_a_late_outcome_corrects_an_uncertain_mail(box: Box) -> None:
    email_id = box.accept()

    def given_up() -> None:
        with box.world.record.session(box.ann) as session:
            Outbox(session).uncertain(email_id, "lost")

    class Slow(FakeTransport):
        def send(self, *args: Any) -> SendReport:
            report = super().send(*args)
            given_up()
            return report

    assert box.run(email_id, Slow())["recipients_sent"] == 1
    assert box.row(email_id).status == "sent"


def test_an_outcome_is_recorded_once_however_often_it_is_told(box: Box) -> None:
    email_id = box.accept()
    with box.world.record.session(box.ann) as session:
        OutboundEmails(session).mark_sending(email_id, 0)
    outcome = DeliveryOutcome(["bob@x.test"], [], None, 250)
    for _ in range(2):
        with box.world.record.session(box.ann) as session:
            assert OutboundEmails(session).record(email_id, outcome, attempts=0).status == "sent"
    with pytest.raises(ConflictError), box.world.record.session(box.ann) as session:
        OutboundEmails(session).record(email_id, outcome, attempts=4)


def test_a_revoked_run_leaves_the_mail_uncertain_after_the_mark_and_unsent_before_it(box: Box) -> None:
    class Stopped(FakeTransport):
        def __init__(self, *, marks: bool) -> None:
            super().__init__()
            self._marks = marks

        def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
            if self._marks:
                before_final_dot()
            raise RunRevoked

    after, before = box.accept(), box.accept()
    with pytest.raises(DeliveryUncertain):
        box.run(after, Stopped(marks=True))
    with pytest.raises(RunRevoked):
        box.run(before, Stopped(marks=False))
    assert (box.row(after).status, box.row(before).status) == ("uncertain", "pending")


def test_a_server_that_refuses_the_mail_later_does_not_undo_who_has_it(box: Box) -> None:
    email_id = box.accept("now@x.test", "later@x.test")
    with pytest.raises(Snooze):
        box.run(email_id, FakeTransport(defers={"later@x.test": SmtpReply(451, "wait 1 seconds")}))
    with box.world.record.session() as session:
        session.execute(update(OutboundRecipient).values(next_retry_at=None))
    assert box.run(email_id, FakeTransport(rejects_message=SmtpReply(554, "5.7.1 spam")))["recipients_sent"] == 1
    assert (box.row(email_id).status, box.people(email_id)["later@x.test"].status) == ("sent", "failed")


def test_a_failed_mail_is_tried_again_for_who_has_not_got_it(box: Box) -> None:
    email_id, via = box.accept("gone@x.test", "away@x.test"), FakeTransport()
    with pytest.raises(RecipientRejected):
        box.run(email_id, FakeTransport(refuses={"gone@x.test", "away@x.test"}))
    assert box.run(email_id, via, task=actors.outbound.retry_failed_email)["recipients_sent"] == 2
    assert (box.row(email_id).status, box.row(email_id).attempts) == ("sent", 2)


def test_a_retry_ends_the_wait_of_a_mail_that_was_put_off(box: Box) -> None:
    email_id, via = box.accept(), FakeTransport()
    with pytest.raises(Snooze):
        box.run(email_id, FakeTransport(defers={"bob@x.test"}))
    box.run(email_id, via, task=actors.outbound.retry_failed_email)
    assert via.delivered_to == ["bob@x.test"]


def test_a_foreign_mail_is_unknown(box: Box) -> None:
    email_id = box.accept()
    for stranger in (box.world.record.people.gus, box.world.record.people.bob):
        with box.world.attempt(stranger), pytest.raises(NotFoundError):
            actors.outbound.send_outbound_email(email_id)


# -- what nobody knows ----------------------------------------------------------------------------------------------------------


def uncertain(box: Box, *to: str, **options: Any) -> str:
    email_id = box.accept(*to)
    with pytest.raises(DeliveryUncertain):
        box.run(email_id, FakeTransport(drops_after_dot=True, **options))
    return email_id


def test_an_uncertain_mail_has_its_sent_folder_looked_at_later(box: Box) -> None:
    email_id = uncertain(box)
    (look,) = box.runs("resolve_uncertain_email")
    assert (look.args, look.waiting_for, look.user_id) == ({"email_id": email_id}, "eta", box.ann.user_id)


def test_an_account_without_imap_has_none(box: Box) -> None:
    with box.world.record.session() as session:
        session.execute(update(EmailClient).values(imap_host=None))
    uncertain(box)
    assert box.runs("resolve_uncertain_email") == []


def test_a_mail_in_the_sent_folder_was_sent(box: Box) -> None:
    email_id = uncertain(box)
    mailbox = box.mailbox(SentFolder(box.row(email_id).message_id))
    result = box.run(email_id, task=actors.sent_copies.resolve_uncertain_email)
    assert (result["found"], result["email_status"], mailbox.selected) == (True, "sent", ["Gesendet"])
    assert (box.row(email_id).status, box.row(email_id).sent_at is not None) == ("sent", True)
    assert box.people(email_id)["bob@x.test"].status == "sent"


def test_a_mail_not_in_the_sent_folder_stays_uncertain(box: Box) -> None:
    email_id = uncertain(box)
    box.mailbox(SentFolder("<other@x.test>"))
    with pytest.raises(Snooze):
        box.run(email_id, task=actors.sent_copies.resolve_uncertain_email)
    assert box.run(email_id, task=actors.sent_copies.resolve_uncertain_email, number=3)["found"] is False
    assert box.row(email_id).status == "uncertain"


@pytest.mark.parametrize(("outcome", "status"), [("sent", "sent"), ("failed", "failed"), ("retry", "pending")])
def test_an_operator_decides(box: Box, outcome: str, status: str) -> None:
    email_id, via = uncertain(box), FakeTransport()
    with box.world.record.session(box.ann) as session:
        assert Outbox(session).resolve(email_id, outcome).status == status
    if outcome == "retry":
        box.run(email_id, via, number=2)
        assert via.delivered_to == ["bob@x.test"]
    with pytest.raises(ConflictError), box.world.record.session(box.ann) as session:
        Outbox(session).resolve(email_id, outcome)
    with pytest.raises(InvalidInputError), box.world.record.session(box.ann) as session:
        Outbox(session).resolve(email_id, "maybe")


def test_who_was_put_off_before_nobody_knew_is_still_tried(box: Box) -> None:
    class Dropping(FakeTransport):
        def send(self, *args: Any) -> SendReport:
            args[3]()
            raise DeliveryUncertain("lost", {"later@x.test": SmtpReply(451, "4.7.1 wait"), "gone@x.test": SmtpReply(550, "5.1.1")})

    email_id = box.accept("bob@x.test", "later@x.test", "gone@x.test")
    with pytest.raises(DeliveryUncertain):
        box.run(email_id, Dropping())
    with box.world.record.session(box.ann) as session:
        assert Outbox(session).resolve(email_id, "sent").status == "pending"
    assert {address: each.status for address, each in box.people(email_id).items()} == {
        "bob@x.test": "sent",
        "later@x.test": "pending",
        "gone@x.test": "failed",
    }


# -- what no run carries ---------------------------------------------------------------------------------------------------------


def test_due_mails_without_a_run_get_one_and_others_none(box: Box) -> None:
    due, carried, early, waiting = (box.accept() for _ in range(4))
    box.enqueue(carried)
    box.set(early, scheduled_at=now() + timedelta(hours=1))
    box.set(waiting, next_retry_at=now() + timedelta(hours=1))
    before = len(box.runs("send_outbound_email"))
    result = box.process_pending()
    new = [run for run in box.runs("send_outbound_email") if run.id in result["task_ids"]]
    assert [(run.args, run.tenant_id, run.user_id) for run in new] == [({"email_id": due}, box.ann.tenant_id, box.ann.user_id)]
    assert box.process_pending()["task_ids"] == []
    assert len(box.runs("send_outbound_email")) == before + 1


def test_a_mail_whose_run_was_lost_after_the_mark_becomes_uncertain(box: Box) -> None:
    lost, held = box.accept(), box.accept()
    box.enqueue(lost, state="FAILURE")
    box.enqueue(held, state="STARTED")
    for email_id in (lost, held):
        box.set(email_id, status="sending")
    assert box.process_pending()["uncertain_count"] == 1
    assert (box.row(lost).status, box.row(held).status) == ("uncertain", "sending")
    assert [run.args for run in box.runs("resolve_uncertain_email")] == [{"email_id": lost}]


def test_a_mail_whose_run_was_revoked_or_whose_time_is_over_is_cancelled(box: Box) -> None:
    revoked, expired = box.accept(), box.accept(expires_at=now() - timedelta(seconds=1))
    box.enqueue(revoked, state="REVOKED")
    result = box.process_pending()
    assert (result["cancelled_count"], result["task_ids"]) == (2, [])
    assert (box.row(revoked).status, box.row(expired).status) == ("cancelled", "cancelled")


# -- the copy in Sent --------------------------------------------------------------------------------------------------------------


def saving(box: Box) -> str:
    with box.world.record.session() as session:
        session.execute(update(EmailClient).values(saves_sent=True))
    email_id = box.accept()
    box.run(email_id)
    return email_id


def test_a_sent_mail_is_saved_once_where_the_account_wants_it(box: Box) -> None:
    email_id, mailbox = saving(box), box.mailbox(SentFolder())
    assert [run.args for run in box.runs("save_sent_copy")] == [{"email_id": email_id}]
    for _ in range(2):
        assert box.run(email_id, task=actors.sent_copies.save_sent_copy)["saved"] is True
    assert mailbox.appended == [box.row(email_id).source]
    assert box.row(email_id).saved_to_sent == "saved"


def test_a_copy_the_server_made_itself_is_enough(box: Box) -> None:
    email_id = saving(box)
    mailbox = box.mailbox(SentFolder(box.row(email_id).message_id))
    assert box.run(email_id, task=actors.sent_copies.save_sent_copy)["saved"] is True
    assert mailbox.appended == []


def test_a_copy_that_cannot_be_saved_says_so_and_the_mail_stays_sent(box: Box) -> None:
    email_id = saving(box)
    box.mailbox(SentFolder(fails=True))
    for number, told in ((1, "wanted"), (4, "failed")):
        with pytest.raises(ConnectionFailed):
            box.run(email_id, task=actors.sent_copies.save_sent_copy, number=number)
        assert (box.row(email_id).saved_to_sent, box.row(email_id).status) == (told, "sent")
    box.mailbox(SentFolder(has_sent=False))
    with pytest.raises(NotFoundError):
        box.run(email_id, task=actors.sent_copies.save_sent_copy)


def test_without_the_wish_there_is_no_copy(box: Box) -> None:
    email_id = box.accept()
    box.run(email_id)
    assert (box.runs("save_sent_copy"), box.row(email_id).saved_to_sent) == ([], None)


# -- what comes back ---------------------------------------------------------------------------------------------------------------


def came_back(session: Session, reference: str, address: str, status: str) -> int:
    return OutboundEmails(session).came_back([BounceReport(reference, reference, address, "failed", status)])


def test_a_bounce_marks_its_recipient_and_suppresses_a_dead_address_once(box: Box) -> None:
    email_id = box.accept("bob@x.test", "cy@x.test")
    box.run(email_id)
    message_id = box.row(email_id).message_id
    with box.world.record.session(box.ann) as session:
        assert came_back(session, message_id.strip("<>"), "BOB@x.test", "5.1.1")
        assert not came_back(session, message_id, "bob@x.test", "5.1.1")
        assert came_back(session, email_id, "cy@x.test", "4.2.2")
        assert not came_back(session, email_id, "cy@x.test", "4.2.2")
        assert not came_back(session, email_id, "nobody@x.test", "5.1.1")
        assert not came_back(session, email_id, "cy@x.test", "what")
        assert not came_back(session, new_id(), "cy@x.test", "5.1.1")
    people = box.people(email_id)
    assert (people["bob@x.test"].status, people["bob@x.test"].enhanced_code) == ("bounced", "5.1.1")
    assert (people["cy@x.test"].status, people["cy@x.test"].bounced_at is not None) == ("sent", True)
    with box.world.record.session() as session:
        assert [(each.address, each.reason) for each in session.scalars(select(Suppression))] == [("bob@x.test", "bounce")]


def test_a_bounce_about_us_or_a_full_mailbox_suppresses_nobody(box: Box) -> None:
    email_id = box.accept("bob@x.test")
    box.run(email_id)
    with box.world.record.session(box.ann) as session:
        assert came_back(session, email_id, "bob@elsewhere.test", "5.2.2")  # the only one: known by another name
    other = box.accept("cy@x.test")
    box.run(other)
    with box.world.record.session(box.ann) as session:
        assert came_back(session, other, "cy@x.test", "5.1.8")
    assert box.world.record.count(Suppression) == 0


def test_a_foreign_report_changes_nothing(box: Box) -> None:
    email_id = box.accept()
    box.run(email_id)
    message_id = box.row(email_id).message_id
    for stranger in (box.world.record.people.gus, box.world.record.people.bob):
        with box.world.record.session(stranger) as session:
            assert not came_back(session, email_id, "bob@x.test", "5.1.1")
            assert not came_back(session, message_id, "bob@x.test", "5.1.1")
    assert box.people(email_id)["bob@x.test"].status == "sent"


def test_what_cannot_work_fails_at_once(box: Box) -> None:
    email_id = box.accept()
    with pytest.raises(MessageRejected):
        box.run(email_id, FakeTransport(rejects_message=SmtpReply(554, "5.7.1 spam")))
    assert (box.row(email_id).status, box.people(email_id)["bob@x.test"].status) == ("failed", "failed")


def test_a_run_that_wakes_up_again_does_not_reopen_what_was_cancelled(box: Box) -> None:
    email_id, via = box.accept(), FakeTransport()
    with pytest.raises(Snooze):
        box.run(email_id, FakeTransport(defers={"bob@x.test"}), task=actors.outbound.retry_failed_email)
    with box.world.record.session(box.ann) as session:
        Outbox(session).cancel(email_id)
    box.patch.setattr(actors.carrying, "transport_to", lambda _email, _endpoint: via)
    claim = Claim(new_id(), box.ann.tenant_id, box.ann.user_id, "t", "send", {}, 1, 4, 2, None, None, None)  # its second claim
    set_current_run(claim)
    with acting_as(box.ann):
        assert actors.outbound.retry_failed_email(email_id)["status"] == "cancelled"
    set_current_run(None)
    assert via.delivered == []
