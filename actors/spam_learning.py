"""What people say of messages, into their tenant's weights: `learn_spam` after every word, `teach_engines` where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from sqlalchemy.orm import Session

from actors.spam import judged, sources_of
from actors.spam_rules import default_threshold, engines, rules_for
from brokers.queues import Queue
from core.errors import PermanentError, Snooze, TransientError
from core.logging import get_logger
from core.settings import get_settings
from core.tenancy import Identity, acting_as, current_identity
from mail.spam.engines.engine import Envelope
from runs.enqueue import enqueue
from runs.registry import EmailId
from runs.task import task
from storage.engine import identity_of, session_scope
from storage.repositories.places import Move
from storage.repositories.spam_choices import SpamChoices
from storage.repositories.spam_feedback import Opinions, SpamFeedbacks
from storage.repositories.spam_verdicts import SpamVerdicts

log = get_logger(__name__)


class LearnResult(TypedDict):
    """From how many opinions the tenant's weights are now, and whether they count."""

    status: str
    spam_count: int
    ham_count: int
    is_active: bool


class TaughtResult(TypedDict):
    """The engines that were told."""

    status: str
    engines: list[str]


def learn_from_moves(session: Session, tenant_id: str, moves: Sequence[Move]) -> None:
    """Messages that somebody moved to Junk or out of it. Too many at a time are not counted."""
    said = SpamFeedbacks(session).moved(tenant_id, moves, per_hour=get_settings().spam_feedback_per_hour)
    if said.over_the_limit:
        log.warning("spam_feedback_over_limit", count=len(said.over_the_limit))
    follow_up(session, said)


def follow_up(session: Session, said: Opinions) -> str | None:
    """In the transaction of the feedback. Returns the run that learns from it, if anything is new."""
    if said.revision is None:
        return None
    if get_settings().spam_teach_engines and engines():
        for email_id in said.recorded:
            enqueue(session, teach_engines, email_id=email_id)
    return learn_soon(session, said.revision)


def learn_soon(session: Session, revision: int) -> str:
    """One run for all that is said until it has begun: its key names what the weights had learned when it was said."""
    return enqueue(session, learn_spam.options(unique_key=f"learn:{revision}"))


@task(queue=Queue.SPAM)
def learn_spam() -> LearnResult:
    """Work out the tenant's weights from the feedback that stands."""
    with acting_as(Identity(current_identity().tenant_id)):  # whoever said it: the weights are everybody's
        unreached = _read_missing()
        result = _learn()
    if unreached is not None:
        raise unreached
    return result


@task(queue=Queue.SPAM)
def teach_engines(email_id: EmailId) -> TaughtResult:
    """Tell the outside engines what a message is, under the tenant's name."""
    from mail.spam.judging import return_path  # with its first use, as in `actors.spam.judged`

    with session_scope() as session:
        said = SpamFeedbacks(session).of([email_id]).get(email_id)
        found = SpamVerdicts(session).to_check([email_id])
    taught = []
    for each in found if said is not None else ():
        for source in (raw for sources in sources_of(each.client_id, [each]) for raw in sources.values()):
            envelope = Envelope(current_identity().tenant_id, return_path(source))
            for guarded in engines():
                guarded.engine.learn(source, envelope, is_spam=said is not None and said.is_spam)
                taught.append(guarded.engine.name)
    return TaughtResult(status="success", engines=taught)


def _read_missing() -> TransientError | Snooze | None:
    """Reads the messages of which the features are not known. Returns what kept us from some; they are read the next time."""
    tenant_id, unreached = current_identity().tenant_id, None
    with session_scope() as session:
        unread = SpamFeedbacks(session).unread(tenant_id)
        found = SpamVerdicts(session).to_check(unread)
        rules = rules_for(session, with_engines=False)
    for client_id in dict.fromkeys(each.client_id for each in found):
        wanted = [each for each in found if each.client_id == client_id]
        try:
            judged(client_id, wanted, rules)
        except PermanentError as error:
            log.info("spam_feedback_unreadable", count=len(wanted), error=error.code)
        except (TransientError, Snooze) as error:
            unreached = error
            unread = [email_id for email_id in unread if email_id not in {each.id for each in wanted}]
    with session_scope() as session:
        SpamFeedbacks(session).read(tenant_id, unread)
    return unreached


def _learn() -> LearnResult:
    from mail.spam.trial import Opinion, learn_from

    with session_scope() as session:
        tenant_id = identity_of(session).tenant_id
        choices = SpamChoices(session)
        weights = choices.locked_weights(tenant_id)  # whatever is said from here on is the next run's
        settings = choices.settings(tenant_id)
        opinions = [Opinion(row.hashes or b"", row.logit or 0.0, row.is_spam) for row in SpamFeedbacks(session).to_learn(tenant_id)]
        threshold = settings.threshold if settings.threshold is not None else default_threshold()
        learned = learn_from(opinions, threshold=threshold, budget=settings.false_positive_budget)
        was_active = weights.is_active
        choices.learned(weights, learned)
    if was_active != learned.is_active:
        log.info("spam_weights_switched", is_active=learned.is_active, **learned.trial.as_dict())
    return LearnResult(status="success", spam_count=learned.spam_count, ham_count=learned.ham_count, is_active=learned.is_active)
