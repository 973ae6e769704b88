"""`check_spam` and its relatives: a stored message, those that just arrived, and a whole mailbox."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from actors.junk import enqueue_junking
from actors.sources import fetch_sources
from actors.spam_rules import model_version, rules_for
from brokers.queues import Queue
from core.errors import PermanentError, Snooze
from core.logging import get_logger
from mail.spam.verdict import Verdict
from runs.limits import SoftTimeLimitExceeded
from runs.progress import progress
from runs.registry import EmailClientId, EmailId, FolderId
from runs.task import task
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients
from storage.repositories.folders import EmailFolders
from storage.repositories.sources import EmailSources
from storage.repositories.spam_verdicts import SpamVerdicts, Unchecked

if TYPE_CHECKING:
    from mail.spam.judging import Rules

log = get_logger(__name__)
AT_A_TIME = 100
GOES_ON_SECONDS = 0.5


class SpamResult(TypedDict):
    """The verdict; `indicators` are codes, their evidence is stored beside. `spam_score` is a probability in 0..1."""

    status: str
    is_spam: bool
    spam_score: float
    indicators: list[str]


class CheckedResult(TypedDict):
    """How many messages have a verdict now, how many of them are spam, and how many could not be read."""

    status: str
    checked_count: int
    spam_count: int
    skipped_count: int


@task(queue=Queue.SPAM)
def check_spam(email_id: EmailId) -> SpamResult:
    """Score a stored message for spam and phishing."""
    verdicts = _check([email_id])
    verdict = verdicts.get(email_id)
    if verdict is None:
        raise PermanentError("The message is no longer on its mail server as it was stored; sync its account and check again.")
    return SpamResult(
        status="success",
        is_spam=verdict.is_spam,
        spam_score=round(verdict.score, 6),
        indicators=list(dict.fromkeys(indicator.code for indicator in verdict.indicators)),
    )


@task(queue=Queue.SPAM)
def check_arrived_spam(email_ids: list[str]) -> CheckedResult:
    """Score messages that a sync has stored, with the outside engines too."""
    try:
        verdicts = _check(email_ids)
    except SoftTimeLimitExceeded:  # what was checked is stored; what was not is checked again
        raise Snooze(GOES_ON_SECONDS, "Many messages; the check goes on in a moment.") from None
    return _counted(verdicts.values(), len(email_ids))


@task(queue=Queue.SPAM)
def check_mailbox_spam(email_client_id: EmailClientId, folder_id: FolderId | None = None) -> CheckedResult:
    """Score the messages of an account that were never checked, the newest first."""
    with session_scope() as session:
        if folder_id is not None:
            EmailFolders(session).one(folder_id, email_client_id)
        total = SpamVerdicts(session).count_unchecked(email_client_id, folder_id)
    done, spam, seen = 0, 0, 0
    try:
        for checked, wanted in _check_account(email_client_id, folder_id):
            done, seen = done + len(checked), seen + wanted
            spam += sum(verdict.is_spam for verdict in checked)
            progress(min(seen, total), total, "checked")
    except SoftTimeLimitExceeded:  # what has a verdict is not looked at again
        raise Snooze(GOES_ON_SECONDS, "A large mailbox; its check goes on in a moment.") from None
    return CheckedResult(status="success", checked_count=done, spam_count=spam, skipped_count=seen - done)


def _check_account(client_id: str, folder_id: str | None) -> Iterator[tuple[list[Verdict], int]]:
    """The verdicts on some messages, and how many these were."""
    before = None
    while True:
        with session_scope() as session:
            found = SpamVerdicts(session).unchecked(client_id, folder_id, before=before, limit=AT_A_TIME)
            rules = rules_for(session, with_engines=True)
        if not found:
            return
        before = found[-1].position
        yield list(judged(client_id, found, rules).values()), len(found)


def _check(email_ids: Sequence[str]) -> dict[str, Verdict]:
    """Judges and stores. What is spam goes to Junk where that is wanted."""
    with session_scope() as session:
        found = SpamVerdicts(session).to_check(email_ids)
        rules = rules_for(session, with_engines=True)
    verdicts: dict[str, Verdict] = {}
    for client_id in dict.fromkeys(each.client_id for each in found):
        verdicts |= judged(client_id, [each for each in found if each.client_id == client_id], rules)
    with session_scope() as session:
        enqueue_junking(session, [each for each in found if each.id in verdicts and verdicts[each.id].is_spam])
    return verdicts


def judged(client_id: str, wanted: Sequence[Unchecked], rules: Rules) -> dict[str, Verdict]:
    """The verdicts on messages of an account, by their ids; those that cannot be read are left out. Stored as they come, so that an end
    in the middle loses little."""
    from mail.spam.judging import judge  # numpy is a good part of a worker's memory: it comes with the first message

    with session_scope() as session:
        recipient = EmailClients(session).one(client_id).email
    places = {each.id: each for each in wanted}
    verdicts: dict[str, Verdict] = {}
    for sources in sources_of(client_id, wanted):
        some = {row_id: judge(raw, rules, sender=places[row_id].sender, recipients=[recipient]) for row_id, raw in sources.items()}
        with session_scope() as session:
            there = SpamVerdicts(session).put(some, model_version())
        verdicts |= {row_id: verdict for row_id, verdict in some.items() if row_id in there}
    return verdicts


def sources_of(client_id: str, wanted: Sequence[Unchecked]) -> Iterator[dict[str, bytes]]:
    """What was kept, then what the server has, by the messages' ids."""
    missing = []
    for each in wanted:
        with session_scope() as session:
            kept = EmailSources(session).one(each.id)
        if kept is None:
            missing.append(each)
        else:
            yield {each.id: kept}
    if missing:
        yield from fetch_sources(client_id, missing)


def _counted(verdicts: Iterable[Verdict], wanted: int) -> CheckedResult:
    found = list(verdicts)
    spam = sum(verdict.is_spam for verdict in found)
    return CheckedResult(status="success", checked_count=len(found), spam_count=spam, skipped_count=wanted - len(found))
