"""`send_email`: sent once, or the row says `uncertain`; whoever is put off is tried again, and nobody gets a mail twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import actors.carrying
import actors.send
from core.errors import InvalidInputError, NotFoundError, Snooze, UnavailableError
from core.ids import new_id
from core.settings import get_settings
from mail.delivery import SendReport
from mail.errors import AuthenticationRefused, ConnectionFailed, DeliveryUncertain, MessageRejected, RecipientRejected
from mail.fake import FakeTransport
from mail.replies import SmtpReply
from runs.limits import SoftTimeLimitExceeded
from storage.models import OutboundEmail, OutboundRecipient
from storage.repositories.outbound import Attachments, OutboundEmails
from tests.unit.actor_world import Actors, acting

__all__ = ["acting"]


class LostProcess(BaseException):
    """What a kill looks like from inside a test: nothing handles it."""


class Interrupted(FakeTransport):
    """Takes the mail past the mark and then does not return."""

    def __init__(self, error: BaseException, *, before_mark: bool = False) -> None:
        super().__init__()
        self._error = error
        self._before_mark = before_mark

    def send(self, sender: str, recipients: Sequence[str], raw: bytes, before_final_dot: Callable[[], None]) -> SendReport:
        if not self._before_mark:
            super().send(sender, recipients, raw, before_final_dot)
        raise self._error


class Sending:
    """An account of ann's, and the transport that its mails go to."""

    def __init__(self, world: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.ann = world.record.people.ann
        self.client = world.account(self.ann, smtp_username="ann", smtp_password="secret")
        self._patch = monkeypatch

    def send(self, via: Any, *to: str, run_id: str = "", number: int = 1, of: int = 4, **fields: Any) -> Any:
        self._patch.setattr(actors.carrying, "transport_to", lambda _email, _endpoint: via)
        with self.world.attempt(self.ann, run_id=run_id, number=number, of=of):
            return actors.send.send_email(self.client, list(to or ["bob@x.test"]), subject="Hi", body_text="Hello", **fields)

    def become_due(self, run_id: str) -> None:
        """As if the time until the next try had passed."""
        email_id = self.row(run_id).id
        with self.world.record.session() as session:
            session.execute(update(OutboundEmail).where(OutboundEmail.id == email_id).values(next_retry_at=None))
            session.execute(update(OutboundRecipient).where(OutboundRecipient.email_id == email_id).values(next_retry_at=None))

    def row(self, run_id: str) -> OutboundEmail:
        with self.world.record.session() as session:
            return session.scalars(select(OutboundEmail).where(OutboundEmail.run_id == run_id)).one()

    def recipients(self, run_id: str) -> dict[str, str]:
        email = self.row(run_id)
        with self.world.record.session() as session:
            return {r.address: r.status for r in session.scalars(select(OutboundRecipient).where(OutboundRecipient.email_id == email.id))}


@pytest.fixture
def sending(acting: Actors, monkeypatch: pytest.MonkeyPatch) -> Sending:
    return Sending(acting, monkeypatch)


def test_a_mail_is_sent_to_everybody_once(sending: Sending) -> None:
    via, run_id = FakeTransport(), new_id()
    result = sending.send(via, "bob@x.test", "BOB@x.test", run_id=run_id, cc=["cy@x.test"], bcc=["di@x.test"])
    assert (result["status"], result["recipients_sent"]) == ("success", 3)
    assert sorted(via.delivered_to) == ["bob@x.test", "cy@x.test", "di@x.test"]
    row = sending.row(run_id)
    assert (row.status, row.attempts, row.message_id) == ("sent", 1, result["message_id"])
    assert result["message_id"].encode() in via.delivered[0].raw
    assert b"di@x.test" not in via.delivered[0].raw


def test_a_second_attempt_of_a_sent_mail_sends_nothing_and_gives_the_same_result(sending: Sending) -> None:
    via, run_id = FakeTransport(), new_id()
    first = sending.send(via, run_id=run_id)
    assert sending.send(via, run_id=run_id, number=2) == first
    assert len(via.delivered) == 1


def uploaded(sending: Sending) -> tuple[str, Path]:
    """A file's id, and where it is kept."""
    place = get_settings().files / sending.ann.tenant_id / "f1"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"tulips in a file")
    with sending.world.record.session(sending.ann) as session:
        file = Attachments(session).add(filename="tulips.txt", content_type="text/plain", size=16, stored_filename=place.name)
        return file.id, place


def test_the_attached_file_is_in_the_mail(sending: Sending) -> None:
    via = FakeTransport()
    sending.send(via, attachment_ids=[uploaded(sending)[0]])
    assert b"tulips.txt" in via.delivered[0].raw


def test_a_file_that_is_not_what_was_uploaded_is_not_sent(sending: Sending) -> None:
    via, (file, place) = FakeTransport(), uploaded(sending)
    place.write_bytes(b"something else altogether")
    with pytest.raises(InvalidInputError, match="upload it again"):
        sending.send(via, attachment_ids=[file])
    place.unlink()
    with pytest.raises(NotFoundError, match="upload it again"):
        sending.send(via, attachment_ids=[file])
    assert via.delivered == []


def test_a_mail_lost_with_its_process_after_the_mark_is_uncertain_and_never_sent_again(sending: Sending) -> None:
    via, run_id = Interrupted(LostProcess()), new_id()
    with pytest.raises(LostProcess):
        sending.send(via, run_id=run_id)
    assert sending.row(run_id).status == "sending"
    for number in (2, 3):
        with pytest.raises(DeliveryUncertain):
            sending.send(via, run_id=run_id, number=number)
    assert sending.row(run_id).status == "uncertain"
    assert len(via.delivered) == 1


def test_a_mail_lost_with_its_process_before_the_mark_is_sent_again(sending: Sending) -> None:
    via, run_id = FakeTransport(), new_id()
    with pytest.raises(LostProcess):
        sending.send(Interrupted(LostProcess(), before_mark=True), run_id=run_id)
    assert sending.row(run_id).status == "pending"
    sending.send(via, run_id=run_id, number=2)
    assert len(via.delivered) == 1


def test_a_server_that_takes_the_mail_and_never_says_so_leaves_it_uncertain(sending: Sending) -> None:
    via, run_id = FakeTransport(drops_after_dot=True), new_id()
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id)
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id, number=2)
    assert (sending.row(run_id).status, len(via.delivered)) == ("uncertain", 1)


def test_the_time_limit_after_the_mark_leaves_the_mail_uncertain(sending: Sending) -> None:
    via, run_id = Interrupted(SoftTimeLimitExceeded()), new_id()
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id)
    assert sending.row(run_id).status == "uncertain"
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id, number=2)
    assert len(via.delivered) == 1


def test_the_time_limit_before_the_mark_is_an_ordinary_retry(sending: Sending) -> None:
    run_id, via = new_id(), FakeTransport()
    with pytest.raises(SoftTimeLimitExceeded):
        sending.send(Interrupted(SoftTimeLimitExceeded(), before_mark=True), run_id=run_id)
    assert sending.row(run_id).status == "pending"
    assert sending.send(via, run_id=run_id, number=2)["recipients_sent"] == 1


def test_a_database_that_is_away_when_the_server_has_the_mail_does_not_make_it_send_again(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    via, run_id = FakeTransport(), new_id()

    def away(*_args: object, **_options: object) -> OutboundEmail:
        raise UnavailableError("The database cannot be reached.")

    with monkeypatch.context() as patch:
        patch.setattr(OutboundEmails, "record", away)
        patch.setattr(actors.carrying, "RECORD_AGAIN", (0.01,))
        with pytest.raises(UnavailableError):
            sending.send(via, run_id=run_id)
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id, number=2)
    assert len(via.delivered) == 1


def test_a_refused_recipient_does_not_stop_the_others(sending: Sending) -> None:
    via, run_id = FakeTransport(refuses={"gone@x.test"}), new_id()
    assert sending.send(via, "gone@x.test", "here@x.test", run_id=run_id)["recipients_sent"] == 1
    assert via.delivered_to == ["here@x.test"]
    assert sending.recipients(run_id) == {"gone@x.test": "failed", "here@x.test": "sent"}
    assert sending.row(run_id).status == "sent"


def test_a_mail_that_everybody_refuses_has_failed(sending: Sending) -> None:
    via, run_id = FakeTransport(refuses={"gone@x.test", "away@x.test"}), new_id()
    with pytest.raises(RecipientRejected):
        sending.send(via, "gone@x.test", "away@x.test", run_id=run_id)
    assert sending.row(run_id).status == "failed"
    with pytest.raises(RecipientRejected):
        sending.send(FakeTransport(), run_id=run_id, number=2)


def test_a_greylisted_mail_snoozes_and_is_counted_in_its_row(sending: Sending) -> None:
    via, run_id = FakeTransport(defers={"bob@x.test"}), new_id()
    for count, wait in ((1, 300), (2, 600)):
        with pytest.raises(Snooze) as snooze:
            sending.send(via, run_id=run_id)
        row = sending.row(run_id)
        assert (row.status, row.attempts, row.next_retry_at is not None) == ("pending", count, True)
        assert wait - 5 < snooze.value.delay <= wait
        assert "bob@x.test" not in str(snooze.value)
        sending.become_due(run_id)


def test_a_mail_that_is_not_due_yet_is_not_offered(sending: Sending) -> None:
    run_id, via = new_id(), FakeTransport()
    with pytest.raises(Snooze):
        sending.send(FakeTransport(defers={"bob@x.test"}), run_id=run_id)
    with pytest.raises(Snooze) as snooze:
        sending.send(via, run_id=run_id)
    assert snooze.value.delay > 290
    assert (via.delivered_to, sending.row(run_id).attempts) == ([], 1)


def test_each_recipient_waits_as_long_as_its_own_server_asked(sending: Sending) -> None:
    run_id, via = new_id(), FakeTransport()
    soon, late = SmtpReply(451, "4.7.1 wait 1 seconds"), SmtpReply(451, "4.2.2 wait 2 hours")
    with pytest.raises(Snooze) as snooze:
        sending.send(FakeTransport(defers={"soon@x.test": soon, "late@x.test": late}), "soon@x.test", "late@x.test", run_id=run_id)
    assert snooze.value.delay <= 1
    time.sleep(1.1)
    with pytest.raises(Snooze) as snooze:
        sending.send(via, run_id=run_id)
    assert via.delivered_to == ["soon@x.test"]
    assert snooze.value.delay > 7000
    row = sending.row(run_id)
    with sending.world.record.session() as session:
        codes = {r.address: (r.status, r.reply_code, r.enhanced_code) for r in OutboundEmails(session).recipients(row.id)}
    assert codes == {"soon@x.test": ("sent", 250, "2.0.0"), "late@x.test": ("pending", 451, "4.2.2")}


def test_a_mail_put_off_as_a_whole_snoozes_too(sending: Sending) -> None:
    run_id = new_id()
    with pytest.raises(Snooze) as snooze:
        sending.send(FakeTransport(rejects_sender=SmtpReply(451, "4.7.1 later")), run_id=run_id)
    assert 295 < snooze.value.delay <= 300
    assert (sending.row(run_id).status, sending.row(run_id).attempts) == ("pending", 1)


def test_a_mail_put_off_too_often_has_failed(sending: Sending) -> None:
    via, run_id = FakeTransport(defers={"bob@x.test"}), new_id()
    for _ in range(9):
        with pytest.raises(Snooze):
            sending.send(via, run_id=run_id)
        sending.become_due(run_id)
    with pytest.raises(RecipientRejected):
        sending.send(via, run_id=run_id)
    assert (sending.row(run_id).status, sending.row(run_id).attempts) == ("failed", 10)


def test_a_second_attempt_sends_the_same_bytes_and_only_to_who_has_not_got_it(sending: Sending) -> None:
    run_id = new_id()
    first, second = FakeTransport(defers={"later@x.test"}), FakeTransport()
    with pytest.raises(Snooze):
        sending.send(first, "now@x.test", "later@x.test", run_id=run_id)
    sending.become_due(run_id)
    result = sending.send(second, "now@x.test", "later@x.test", run_id=run_id)
    assert (first.delivered_to, second.delivered_to) == (["now@x.test"], ["later@x.test"])
    assert first.delivered[0].raw == second.delivered[0].raw
    assert result["recipients_sent"] == 2


def test_a_server_that_has_a_pause_is_not_tried_and_no_try_is_counted(sending: Sending) -> None:
    via, run_id = FakeTransport(fails_before_dot=True), new_id()
    for _ in range(3):
        with pytest.raises(Snooze):
            sending.send(via, run_id=run_id)
        sending.become_due(run_id)
    tries = sending.row(run_id).attempts
    with pytest.raises(Snooze, match="did not answer lately"):
        sending.send(via, run_id=run_id)
    assert (sending.row(run_id).attempts, sending.row(run_id).status) == (tries, "pending")


def test_a_server_that_cannot_be_reached_is_tried_again_soon_and_not_for_ever(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.mail_hosts.FAILURES_UNTIL_CLOSED", 100)
    via, run_id = FakeTransport(fails_before_dot=True), new_id()
    for wait in (10, 20, 40, 80, 160, 320, 600, 600, 600):
        with pytest.raises(Snooze) as snooze:
            sending.send(via, run_id=run_id)
        assert wait - 3 < snooze.value.delay <= wait
        sending.become_due(run_id)
    with pytest.raises(ConnectionFailed):
        sending.send(via, run_id=run_id)
    assert sending.row(run_id).status == "failed"


@pytest.mark.parametrize(
    ("via", "error"),
    [
        (FakeTransport(rejects_message=SmtpReply(554, "5.7.1 spam")), MessageRejected),
        (Interrupted(AuthenticationRefused("The login was refused."), before_mark=True), AuthenticationRefused),
    ],
)
def test_what_can_never_work_fails_the_mail_at_once(sending: Sending, via: Any, error: type[Exception]) -> None:
    run_id = new_id()
    with pytest.raises(error):
        sending.send(via, run_id=run_id)
    assert sending.row(run_id).status == "failed"


def test_a_mail_without_a_recipient_is_refused(sending: Sending) -> None:
    with sending.world.attempt(sending.ann), pytest.raises(InvalidInputError, match="at least one recipient"):
        actors.send.send_email(sending.client, [])


def test_a_foreign_account_is_unknown_and_nothing_is_written(sending: Sending) -> None:
    for stranger in (sending.world.record.people.gus, sending.world.record.people.bob):
        with sending.world.attempt(stranger), pytest.raises(NotFoundError):
            actors.send.send_email(sending.client, ["bob@x.test"])
    assert sending.world.record.count(OutboundEmail) == 0


def test_a_replayed_dead_letter_is_sent_with_the_same_bytes(sending: Sending) -> None:
    run_id = new_id()
    with pytest.raises(RecipientRejected):
        sending.send(FakeTransport(refuses={"bob@x.test"}), run_id=run_id)
    assert sending.row(run_id).status == "failed"
    before, via = sending.row(run_id).source, FakeTransport()
    assert sending.send(via, run_id=run_id)["recipients_sent"] == 1
    assert (sending.row(run_id).status, sending.row(run_id).source) == ("sent", before)
    assert via.delivered_to == ["bob@x.test"]


def test_an_uncertain_mail_is_not_sent_by_a_replay_either(sending: Sending) -> None:
    run_id, via = new_id(), FakeTransport()
    with pytest.raises(DeliveryUncertain):
        sending.send(FakeTransport(drops_after_dot=True), run_id=run_id)
    with pytest.raises(DeliveryUncertain):
        sending.send(via, run_id=run_id)
    assert via.delivered_to == []
