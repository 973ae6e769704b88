"""What is said of a message that was checked, and what the caller may say before: pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mail.spam.learning import Delta

MAX_EVIDENCE = 200
"""Characters of an indicator's evidence."""


class Severity(StrEnum):
    """How much an indicator alone says. Only HIGH ones may flag a message without a model."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Indicator:
    """One finding: a stable code, and what of the message shows it, sanitised, at most MAX_EVIDENCE characters."""

    code: str
    severity: Severity
    evidence: str


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature adds to the raw score; positive is towards spam."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class EngineScore:
    """What an outside engine said, in its own units."""

    engine: str
    score: float
    required: float
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. `score` is a probability in 0..1 and `is_spam` is `score >= threshold`.

    `hashes` are the features of the message that a tenant learns from, hashed, little-endian uint32, sorted, each once: one or two kB
    from which no text can be read. `logit` is the shared model's raw score, before calibration and without the tenant's weights.
    """

    score: float
    is_spam: bool
    threshold: float
    indicators: tuple[Indicator, ...]
    contributions: tuple[Contribution, ...]
    hashes: bytes
    logit: float
    engines: tuple[EngineScore, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What the caller knows: of the tenant, of its servers, of its feedback."""

    trusted_authserv_ids: frozenset[str] = frozenset()
    """Whose Authentication-Results count (RFC 8601 5); all others are ignored."""
    own_domains: frozenset[str] = frozenset()
    """The tenant's own domains: look-alikes of them are suspicious."""
    brands: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """More brand words and the domains that are really theirs."""
    dkim_lookup: Callable[[str], bytes | None] | None = None
    """The TXT record of a name, or None. Without it signatures are not verified again."""
    threshold: float | None = None
    """None: the model's own."""
    delta: Delta | None = None
    """The tenant's weights."""
