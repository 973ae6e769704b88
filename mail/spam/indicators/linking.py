"""Where the links of a message lead. Nothing is asked: what is not in the link itself is not known."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.spam.brands import Names, scripts, unicode_name
from mail.spam.hops import organisation
from mail.spam.indicators.table import found
from mail.spam.links import Target, read_target
from mail.spam.verdict import Indicator
from mail.spam.view import View
from mail.spam.wordlists import listed

MAX_LOOKED_AT = 500
"""Links that are looked at one by one."""
CROWD = 400
_SHORTENERS = listed(
    """
    bit.ly tinyurl.com t.co goo.gl ow.ly is.gd buff.ly rebrand.ly cutt.ly shorturl.at rb.gy t.ly tiny.cc s.id v.gd qr.ae lnkd.in urlz.fr
    shorte.st adf.ly bl.ink soo.gd clck.ru u.to n9.cl t.me wa.me"""
)
_HOSTING = (
    ".web.app", ".firebaseapp.com", ".workers.dev", ".pages.dev", ".netlify.app", ".vercel.app", ".herokuapp.com", ".weebly.com",
    ".wixsite.com", ".blogspot.com", ".repl.co", ".glitch.me", ".r2.dev", ".ipfs.dweb.link", ".blob.core.windows.net", ".square.site",
    ".000webhostapp.com", ".godaddysites.com", ".my.canva.site", ".page.link", ".duckdns.org", ".ngrok.io", ".ngrok-free.app",
)  # fmt: skip
_SHOWN = re.compile(r"^(?:https?://)?((?:[a-z0-9-]+\.)+[a-z]{2,24})(?:[:/?#]\S*)?$", re.IGNORECASE)
_USUAL_PORTS = frozenset({"", "80", "443", "8080"})


def linking(view: View, names: Names) -> Iterator[Indicator]:
    """Each code at most once, with the first link that shows it."""
    seen: set[str] = set()
    for code, evidence in _findings(view, names):
        if code not in seen:
            seen.add(code)
            yield found(code, evidence)


def _findings(view: View, names: Names) -> Iterator[tuple[str, str]]:
    if len(view.urls) > CROWD:
        yield "too_many_links", str(len(view.urls))
    for url in view.urls[:MAX_LOOKED_AT]:
        target = read_target(url)
        if target.host:
            yield from _of_host(target, names)
        if target.scheme in {"javascript", "vbscript"} or (target.scheme == "data" and "html" in url[:40].lower()):
            yield "script_link", url[:60]
    own = organisation(view.sender_domain) if view.sender else ""
    for link in view.page.links[:MAX_LOOKED_AT]:
        shown = _SHOWN.match(link.text)
        if shown is not None:
            target = read_target(link.href)
            org = organisation(shown.group(1))
            if target.host and org != target.organisation and not (target.organisation == own != ""):
                yield "link_text_mismatch", f"{shown.group(1)} to {target.host}"


def _of_host(target: Target, names: Names) -> Iterator[tuple[str, str]]:
    host, org = target.host, target.organisation
    if target.is_address:
        yield "ip_link", host
    else:
        if known := names.lookalike(org):
            yield "lookalike_link", f"{unicode_name(host)} for {known}"
        elif brand := names.borrowed(host, org):
            yield "brand_in_link", f"{host} for {brand}"
        if host.count(".") >= 5:
            yield "many_subdomains_link", host
        if org in _SHORTENERS:
            yield "shortened_link", host
        if host.endswith(_HOSTING):
            yield "free_hosting_link", host
    if target.user and target.is_web and ("." in target.user or ":" in target.user):
        yield "userinfo_link", f"{target.user[:60]}@{host}"
    if target.port not in _USUAL_PORTS:
        yield "odd_port_link", f"{host}:{target.port}"
    if "xn--" in host or not host.isascii():
        shown = unicode_name(host)
        is_mixed = any(len(scripts(label)) > 1 and "LATIN" in scripts(label) for label in shown.split("."))
        yield ("mixed_script_domain" if is_mixed else "punycode_link"), shown
