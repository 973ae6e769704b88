"""What can be proved about the sender: results of a trusted server (RFC 8601), and signatures verified once more (RFC 6376)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mail.spam.hops import organisation
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View

MAX_SIGNED = 1024 * 1024
"""Bytes of a message whose signatures are verified; larger ones are not."""
MAX_SIGNATURES = 3
_RESULT = re.compile(r";\s*(spf|dkim|dmarc)\s*=\s*(\w+)", re.IGNORECASE)
_COMMENT = re.compile(r"\([^()]*\)")
_DOMAIN = re.compile(r"(?:^|;)\s*d\s*=\s*([\w.-]+)", re.IGNORECASE)
_ED25519 = re.compile(r"(?:^|;)\s*a\s*=\s*ed25519", re.IGNORECASE)
"""The library verifies these (RFC 8463) only with another one that is not installed; RSA signatures stand beside them in practice."""
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
    org = organisation(view.sender_domain) if view.sender else ""
    failed = ""
    for index, value in enumerate(view.names["dkim-signature"][:MAX_SIGNATURES]):
        match = _DOMAIN.search(value)
        domain = match.group(1).lower() if match else ""
        verdict = None if _ED25519.search(value) else _verifies(view.raw, index, lookup)
        if verdict is None:  # no key to be had says nothing
            continue
        if verdict and org and organisation(domain) == org:
            yield found("dkim_valid", domain)
            return
        failed = failed or ("" if verdict else domain)
    if failed:
        yield found("dkim_invalid", failed)


def _verifies(raw: bytes, index: int, lookup: Callable[[str], bytes | None]) -> bool | None:
    """None where the key is not to be had."""
    import dkim  # and a DNS library behind it: nine megabytes that only this needs

    missing = False

    def key(name: bytes | str, timeout: int = 5) -> bytes | None:  # noqa: ARG001 - the library passes it
        nonlocal missing
        record = lookup((name.decode("ascii", "replace") if isinstance(name, bytes) else name).rstrip("."))
        missing |= record is None
        return record

    try:
        verified = bool(dkim.DKIM(raw).verify(idx=index, dnsfunc=key))
    except Exception:  # the library raises what it likes at a stranger's bytes: it does not verify
        verified = False
    return None if missing and not verified else verified
