"""The whole judgement on one message: the embedded check, the engines if there are any, and the senders the tenant is sure of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from mail.spam.check import check
from mail.spam.engines.engine import MAX_SENT, Breaker, Engine, EngineUnavailable, Envelope
from mail.spam.engines.fusion import fuse, log_odds
from mail.spam.learning import Delta
from mail.spam.model import sigmoid
from mail.spam.senders import SenderLists, apply_lists
from mail.spam.verdict import Context, EngineScore, Verdict

MOST_CERTAIN = 30.0
_RETURN_PATH = re.compile(rb"(?im)^Return-Path:[ \t]*<([^<>\r\n]*)>")


@dataclass(frozen=True, slots=True)
class GuardedEngine:
    """An engine with the breaker of this process."""

    engine: Engine
    breaker: Breaker = field(default_factory=Breaker)

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        """Raises EngineUnavailable, at once while the breaker is open."""
        if not self.breaker.may_ask():
            raise EngineUnavailable(f"{self.engine.name} did not answer lately; it is asked again in a while.")
        try:
            said = self.engine.scan(source, envelope)
        except EngineUnavailable:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return said


@dataclass(frozen=True, slots=True)
class Rules:
    """How a tenant wants its mail judged. `user` is what engines know the tenant by."""

    context: Context = field(default_factory=Context)
    lists: SenderLists = field(default_factory=SenderLists)
    engines: Sequence[GuardedEngine] = ()
    user: str = ""


def judge(source: bytes, rules: Rules, *, sender: str, recipients: Sequence[str] = ()) -> Verdict:
    """Never raises for a message or an engine. `sender` is the address that the message names in From.

    An engine that is down is a note, `engine_unavailable:<name>`, and the others and the embedded check stand. `logit` of the verdict is
    what everybody's check says, the log-odds without the tenant's weights: what learning compares them with.
    """
    verdict = _with_delta(check(source, replace(rules.context, delta=None)), rules.context.delta)
    if rules.engines:
        verdict = _asked(verdict, source, rules, Envelope(rules.user, return_path(source), tuple(recipients)))
    return apply_lists(verdict, rules.lists, sender)


def return_path(source: bytes) -> str:
    """The envelope's sender as the last server wrote it into the header; "" without one."""
    head = source[: 64 * 1024].partition(b"\r\n\r\n")[0].partition(b"\n\n")[0]
    found = _RETURN_PATH.search(head)
    return found[1].decode("ascii", "replace") if found else ""


def _with_delta(shared: Verdict, delta: Delta | None) -> Verdict:
    """The tenant's weights on top of everybody's check: as `check` adds them, but what they were added to is kept."""
    odds = log_odds(shared.score, most=MOST_CERTAIN)
    own = delta.score(shared.hashes) if delta is not None else 0.0
    if not own:
        return replace(shared, logit=odds)
    score = sigmoid(odds + own)
    return replace(shared, logit=odds, score=score, is_spam=score >= shared.threshold)


def _asked(verdict: Verdict, source: bytes, rules: Rules, envelope: Envelope) -> Verdict:
    """All engines at the same time."""
    if len(source) > MAX_SENT:
        return replace(verdict, notes=(*verdict.notes, "too_large_for_engines"))

    def ask(engine: GuardedEngine) -> EngineScore | str:
        try:
            return engine.scan(source, envelope)
        except EngineUnavailable:
            return f"engine_unavailable:{engine.engine.name}"

    if len(rules.engines) == 1:
        answers = [ask(rules.engines[0])]
    else:
        with ThreadPoolExecutor(len(rules.engines)) as pool:
            answers = list(pool.map(ask, rules.engines))
    fused = fuse(verdict, [each for each in answers if isinstance(each, EngineScore)])
    return replace(fused, notes=(*verdict.notes, *(each for each in answers if isinstance(each, str))))
