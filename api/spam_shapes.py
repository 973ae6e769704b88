"""The JSON shapes of verdicts, feedback, a tenant's spam settings and lists."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StringConstraints

from api.outbound_shapes import Request
from api.shapes import Shape
from core.errors import InvalidInputError
from mail.spam.senders import normalise_pattern
from storage.models import SpamFeedback, SpamSettings, SpamVerdict, SpamWeights
from storage.repositories.spam_choices import FIELDS


def _domain(text: str) -> str:
    try:
        domain = normalise_pattern(text)
    except InvalidInputError:
        domain = "@"
    if "@" in domain:
        raise ValueError("it is not a domain")
    return domain


Domain = Annotated[str, StringConstraints(max_length=253), AfterValidator(_domain)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=2, max_length=50)]
AuthservId = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^[^\s;\"]+$", max_length=253)]
Threshold = Annotated[StrictFloat | StrictInt, Field(ge=0.01, le=0.9999)]
Budget = Annotated[StrictFloat | StrictInt, Field(ge=0.0001, le=0.2)]


class IndicatorView(Shape):
    """One finding: a stable code, how much it says alone, and what of the message shows it."""

    code: str
    severity: str
    evidence: str


class SpamView(Shape):
    """The newest verdict on a message. `score` is a probability in 0..1. `notes` say what could not be looked at."""

    is_spam: bool
    score: float
    threshold: float
    indicators: list[IndicatorView]
    notes: list[str]
    source: str
    checked_at: datetime

    @classmethod
    def of(cls, row: SpamVerdict) -> SpamView:
        """As stored."""
        names = ("is_spam", "score", "threshold", "indicators", "notes", "source")
        return cls(**{name: getattr(row, name) for name in names}, checked_at=row.created_at)


class NewFeedback(Request):
    """True: it is spam. False: it is not."""

    spam: StrictBool


class FeedbackView(Shape):
    """What was said of a message. `wasSpam`: what the verdict was then; null without one."""

    message_id: str
    spam: bool
    was_spam: bool | None
    via: str
    said_at: datetime

    @classmethod
    def of(cls, row: SpamFeedback) -> FeedbackView:
        """As stored."""
        return cls(message_id=row.email_id, spam=row.is_spam, was_spam=row.was_spam, via=row.via, said_at=row.created_at)


class SettingsBody(Request):
    """What a tenant wants of the check. `threshold` null: from `falsePositiveBudget` once there is enough feedback, or the model's own.
    `brands`: a word, and the domains that may use it. Of `trustedAuthservIds` alone Authentication-Results are believed."""

    threshold: Threshold | None = None
    false_positive_budget: Budget | None = None
    moves_junk: StrictBool = False
    is_learning: StrictBool = True
    trusted_authserv_ids: list[AuthservId] = Field([], max_length=20)
    own_domains: list[Domain] = Field([], max_length=200)
    brands: dict[Word, Annotated[list[Domain], Field(max_length=50)]] = Field({}, max_length=200)

    def columns(self) -> dict[str, Any]:
        """As they are stored."""
        return self.model_dump(include=set(FIELDS))


class SettingsView(Shape):
    """What is in force for a tenant."""

    threshold: float | None
    false_positive_budget: float | None
    moves_junk: bool
    is_learning: bool
    trusted_authserv_ids: list[str]
    own_domains: list[str]
    brands: dict[str, list[str]]

    @classmethod
    def of(cls, row: SpamSettings) -> SettingsView:
        """As stored."""
        return cls(**{name: getattr(row, name) for name in FIELDS})


class NewListEntry(Request):
    """`pattern`: an address, or a domain with everything below it."""

    kind: Literal["allow", "block"]
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]


class SpamListEntryView(Shape):
    """As stored, in normal form."""

    id: str
    kind: str
    pattern: str
    created_at: datetime


class SpamListPage(Shape):
    """A page of the lists, newest first."""

    items: list[SpamListEntryView]
    next_cursor: str | None


class LearningView(Shape):
    """A tenant's own weights. `trial`: how they and the shared model judged the newest opinions before learning them. `isBehind`: some
    feedback is not learned yet."""

    is_active: bool
    is_behind: bool
    spam_count: int
    ham_count: int
    threshold: float | None
    trial: dict[str, int]
    updated_at: datetime | None


class FeedbackCounts(Shape):
    """Opinions that stand: of them, spam that the check had missed and wanted mail that it had called spam."""

    spam: int
    ham: int
    missed: int
    false_positives: int


class StatsView(Shape):
    """How the check does for a tenant."""

    checked: int
    spam: int
    junked: int
    feedback: FeedbackCounts
    learning: LearningView
    model: str | None
    engines: list[str]

    @classmethod
    def of(
        cls, verdicts: Mapping[str, int], feedback: Mapping[str, int], weights: SpamWeights | None, *, model: str | None, engines: list[str]
    ) -> StatsView:
        """From the counts."""
        learning = LearningView(
            is_active=weights is not None and weights.is_active,
            is_behind=weights is not None and weights.revision != weights.learned_revision,
            spam_count=weights.spam_count if weights is not None else 0,
            ham_count=weights.ham_count if weights is not None else 0,
            threshold=weights.threshold if weights is not None else None,
            trial=weights.trial if weights is not None else {},
            updated_at=weights.updated_at if weights is not None else None,
        )
        return cls(**verdicts, feedback=FeedbackCounts(**feedback), learning=learning, model=model, engines=engines)
