"""The senders a tenant is sure of: allowed and blocked addresses, and domains with everything below them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from core.errors import InvalidInputError
from mail.addresses import domain_of, normalise_address
from mail.spam.verdict import Indicator, Severity, Verdict

FORGED = frozenset({"auth_spf_fail", "auth_dkim_fail", "auth_dmarc_fail", "dkim_invalid"})
"""Whose signs are these is not the sender that the message names."""


@dataclass(frozen=True, slots=True)
class SenderLists:
    """Patterns in normal form: `ann@acme.test` or `acme.test`. None is on both lists."""

    allow: frozenset[str] = frozenset()
    block: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.allow) + len(self.block)

    def __contains__(self, pattern: object) -> bool:
        return pattern in self.allow or pattern in self.block

    def find(self, address: str) -> tuple[str, str] | None:
        """("allow" or "block", the pattern) of the narrowest pattern that names the address."""
        for pattern in _patterns_of(address) if self.allow or self.block else ():
            if pattern in self.block:
                return "block", pattern
            if pattern in self.allow:
                return "allow", pattern
        return None


def normalise_pattern(text: str) -> str:
    """An address or a domain as the lists keep it, in lower case with domains in A-labels; `@acme.test` is the domain. Raises
    InvalidInputError."""
    typed = text.strip().lower()
    if "@" in typed.removeprefix("@"):
        return normalise_address(typed, field="pattern").lower()
    domain = typed.removeprefix("@").removeprefix("*.").rstrip(".")
    try:
        return domain_of(normalise_address(f"postmaster@{domain}"))
    except InvalidInputError:
        raise InvalidInputError("pattern must be an e-mail address (ann@example.com) or a domain (example.com).") from None


def apply_lists(verdict: Verdict, lists: SenderLists, sender: str) -> Verdict:
    """What the tenant is sure of counts more than any score: 1 for a blocked sender, 0 for an allowed one.

    Anybody can write any sender into a message: one that failed its authentication is allowed nothing.
    """
    found = lists.find(sender)
    if found is None:
        return verdict
    kind, pattern = found
    if kind == "block":
        blocked = Indicator("sender_blocked", Severity.HIGH, pattern)
        return replace(verdict, score=1.0, is_spam=True, indicators=(blocked, *verdict.indicators))
    if any(indicator.code in FORGED for indicator in verdict.indicators):
        return replace(verdict, notes=(*verdict.notes, "allow_list_not_applied"))
    allowed = Indicator("sender_allowed", Severity.INFO, pattern)
    return replace(verdict, score=0.0, is_spam=False, indicators=(allowed, *verdict.indicators))


def _patterns_of(address: str) -> list[str]:
    """The address, its domain and those above it, the narrowest first."""
    with contextlib.suppress(InvalidInputError):  # an address that is none may still be listed by its domain
        address = normalise_address(address)
    local, _, domain = address.strip().lower().rpartition("@")
    if not local or not domain:
        return []
    labels = domain.split(".")
    return [f"{local}@{domain}", *(".".join(labels[start:]) for start in range(len(labels) - 1))]
