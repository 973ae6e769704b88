"""Who a message says it is from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.addresses import domain_of
from mail.spam.brands import FREE_MAIL, Names, scripts, skeleton, unicode_name
from mail.spam.hops import organisation
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View

_ADDRESS = re.compile(r"[\w.+-]+@([\w-]+(?:\.[\w-]+)+)")
_GAPS = re.compile(r"[^0-9A-Za-z$@!|\u0080-\uffff]+")


def identity(view: View, names: Names) -> Iterator[Indicator]:
    """Of the sender and of those who speak for it."""
    if view.sender is None:
        if "from" not in view.names or not view.first("from"):
            yield found("missing_from")
        return
    domain = view.sender_domain
    org = organisation(domain)
    yield from _name(view, org, names)
    yield from _domain(domain, org, names)
    yield from _others(view, org)


def _name(view: View, org: str, names: Names) -> Iterator[Indicator]:
    name = view.sender.name if view.sender else ""
    other = _ADDRESS.search(name)
    if other is not None:
        if organisation(other.group(1)) != org:
            yield found("display_name_spoof", name)
        return
    is_listed = "list-id" in view.names or "list-post" in view.names
    if not name or is_listed or org in names.theirs:
        return
    shown = " ".join(skeleton(word) for word in _GAPS.split(name))
    words = f" {shown} "
    for seen, brand, domains in names.shown:
        if seen in words and org not in domains and org.partition(".")[0] != brand.replace(" ", ""):
            yield found("display_name_spoof", f"{name} <{domain_of(view.sender.addr) if view.sender else ''}>")
            return


def _domain(domain: str, org: str, names: Names) -> Iterator[Indicator]:
    known = names.lookalike(org)
    if known:
        yield found("lookalike_domain", f"{unicode_name(org)} for {known}")
    elif brand := names.borrowed(domain, org):
        yield found("brand_in_domain", f"{domain} for {brand}")
    if "xn--" in domain or not domain.isascii():
        shown = unicode_name(domain)
        is_mixed = any(len(scripts(label)) > 1 and "LATIN" in scripts(label) for label in shown.split("."))
        yield found("mixed_script_domain" if is_mixed else "punycode_domain", shown)


def _others(view: View, org: str) -> Iterator[Indicator]:
    if view.reply_to:
        reply = domain_of(view.reply_to[0].addr)
        is_listed = "list-id" in view.names or "list-post" in view.names or "mailing-list" in view.names
        if reply and organisation(reply) != org and not is_listed:
            is_free = reply in FREE_MAIL and org not in FREE_MAIL
            yield found("reply_to_free_mail" if is_free else "reply_to_mismatch", f"{reply} for {org}")
    path = domain_of(view.return_path)
    if path and organisation(path) != org:
        yield found("return_path_mismatch", f"{path} for {org}")
    made = view.first("message-id").rpartition("@")[2].strip("<> ").lower()
    if "." in made and not made[-1].isdigit() and organisation(made) != org:
        yield found("message_id_mismatch", f"{made} for {org}")
    if view.sender and view.sender.addr.lower() in view.first("to")[:1000].lower():
        yield found("sender_is_recipient")
