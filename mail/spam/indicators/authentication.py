"""What can be proved about the sender: results of a trusted server (RFC 8601), and signatures verified once more (RFC 6376)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from time import monotonic

from mail.spam.hops import organisation
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View

MAX_SIGNED = 1024 * 1024
"""Bytes of a message whose signatures are verified; larger ones are not."""
MAX_SIGNATURES = 3
SECONDS_FOR_KEYS = 0.5
"""Of one message, after which no further signature is begun: each may take as long as its key does to be had."""
_RESULT = re.compile(r";\s*(spf|dkim|dmarc)\s*=\s*(\w+)", re.IGNORECASE)
_COMMENT = re.compile(r"\([^()]*\)")
_DOMAIN = re.compile(r"(?:^|;)\s*d\s*=\s*([\w.-]+)", re.IGNORECASE)
_FAILED = {"spf": {"fail", "softfail", "hardfail"}, "dkim": {"fail"}, "dmarc": {"fail"}}


def authentication(view: View, trusted: frozenset[str], lookup: Callable[[str], bytes | None] | None) -> Iterator[Indicator]:
    """Results of servers that are not trusted are never read: anybody can write such a header."""
    if trusted:
        yield from _results(view, trusted)
    if lookup is not None and "dkim-signature" in view.names and len(view.raw) <= MAX_SIGNED:
        yield from _signatures(view, lookup)


def _results(view: View, trusted: frozenset[str]) -> Iterator[Indicator]:
    lower = {each.lower() for each in trusted}
    for value in view.names.get("authentication-results", [])[:20]:
        plain = _COMMENT.sub(" ", value[:8000])
        server = (plain.partition(";")[0].split() or [""])[0].lower()
        if server not in lower:
            continue
        results: dict[str, set[str]] = {}
        for method, result in _RESULT.findall(plain):
            results.setdefault(method.lower(), set()).add(result.lower())
        for method, failures in _FAILED.items():
            got = results.get(method, set())
            if got & failures and "pass" not in got:
                yield found(f"auth_{method}_fail", f"{server}: {method}={'/'.join(sorted(got))}")
        return  # the first is the newest: the trusted server's own


def _signatures(view: View, lookup: Callable[[str], bytes | None]) -> Iterator[Indicator]:
    from mail.spam.signatures import verify_signature  # and a DNS library behind it: nine megabytes that only this needs

    org = organisation(view.sender_domain) if view.sender else ""
    failed, deadline = "", monotonic() + SECONDS_FOR_KEYS
    for index, value in enumerate(view.names["dkim-signature"][:MAX_SIGNATURES]):
        if monotonic() > deadline:
            break
        match = _DOMAIN.search(value)
        domain = match.group(1).lower() if match else ""
        verdict = verify_signature(view.raw, index, lookup)
        if verdict is None:  # no key to be had says nothing
            continue
        if verdict and org and organisation(domain) == org:
            yield found("dkim_valid", domain)
            return
        failed = failed or ("" if verdict else domain)
    if failed:
        yield found("dkim_invalid", failed)
