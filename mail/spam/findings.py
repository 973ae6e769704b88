"""All indicators of a message, the gravest first, for as long as there is time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mail.spam.brands import names_of
from mail.spam.indicators.attachments import attachments
from mail.spam.indicators.authentication import authentication
from mail.spam.indicators.content import content
from mail.spam.indicators.identity import identity
from mail.spam.indicators.linking import linking
from mail.spam.indicators.structure import structure
from mail.spam.verdict import Context, Indicator, Severity
from mail.spam.view import View

_GRAVITY = {Severity.HIGH: 0, Severity.MEDIUM: 1, Severity.LOW: 2, Severity.INFO: 3}


def find_indicators(view: View, words: frozenset[bytes], context: Context, has_time: Callable[[], bool]) -> list[Indicator]:
    """Sorted by severity and code; `words` are those of the text, in lower case.

    Notes `time_limit` when a group of them was left out, `indicator_failed` when one broke.
    """
    names = names_of(tuple(sorted(context.brands.items(), key=lambda item: item[0])), context.own_domains)
    groups: list[Callable[[], Iterator[Indicator]]] = [
        lambda: structure(view),
        lambda: identity(view, names),
        lambda: linking(view, names),
        lambda: attachments(view),
        lambda: content(view, words),
        lambda: authentication(view, context.trusted_authserv_ids, context.dkim_lookup),
    ]
    results: list[Indicator] = []
    for group in groups:
        if not has_time():
            _note(view, "time_limit")
            break
        try:
            results.extend(group())
        except Exception:  # one finding that breaks at a stranger's bytes must not cost the verdict
            _note(view, "indicator_failed")
    return sorted(results, key=lambda each: (_GRAVITY[each.severity], each.code))


def _note(view: View, note: str) -> None:
    if note not in view.notes:
        view.notes.append(note)
