"""The header of a message as tokens that mean the same at any site: relations and shapes, never a name of a host, a list or a year.

What is left out was tried: the order of headers, which ones there are, mail programs, forms of Message-IDs and the words of Received
headers tell sites and years apart and make a model worse everywhere else. A tenant learns those for itself (`site` in features.py).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

from mail.addresses import domain_of
from mail.spam.hops import Hop, find_border, is_dynamic, organisation, received_at
from mail.spam.view import View
from mail.spam.wordlists import listed

_WRITTEN_BY_SENDERS = listed(
    "from to cc subject date message-id mime-version content-type content-transfer-encoding reply-to x-mailer user-agent in-reply-to "
    "references sender x-priority importance content-disposition"
)
_USUAL_CASE = frozenset({"Message-ID", "MIME-Version"})
_FREE = listed("gmail hotmail yahoo aol msn lycos netscape rediffmail juno earthlink outlook live gmx web yandex icloud")
_RUNS = re.compile(r"([Aa0])\1*")
_TO_SHAPE = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "A" * 26 + "a" * 26 + "0" * 10)
_LETTERS = re.compile(r"[A-Za-z]+")
_DIGIT = re.compile(r"[0-9]")
_ZONE = re.compile(r"([+-])(\d\d)(\d\d)")
_ANSWER = re.compile(r"^\s*(?:re|aw|sv|antw|fwd?|fw)(?:\[\d+\])?\s*:", re.IGNORECASE)
_TAG = re.compile(r"^\s*(?:re:\s*)?\[[^\]]{2,30}\]", re.IGNORECASE)
_GAP = re.compile(r"\s{4,}\S+\s*$")
_MARKS = (
    ("!", "bang"), ("?", "question"), ("$", "dollar"), ("%", "percent"), ("...", "dots"), (",", "comma"), ("*", "star"), ("#", "hash"),
    ('"', "quote"), (":", "colon"),
)  # fmt: skip
_BOUNDS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 2000, 4000, 8000, 16000, 32000)


def bucket(number: int) -> int:
    """How many of the bounds are not above the number: steps of about 1.6."""
    return bisect_right(_BOUNDS, number)


def shape(text: str) -> str:
    """Runs of letters and digits as one sign and a rough length: `Mo.Baker77` is `A1a1.A1a402`."""
    return _RUNS.sub(lambda run: f"{run.group(1)}{min(bucket(len(run.group())), 9)}", text[:120].translate(_TO_SHAPE))


def header_tokens(view: View) -> Iterator[str]:
    """All tokens of a header; some come more than once."""
    yield from _form(view)
    yield from _sender(view)
    yield from _message_id(view)
    yield from _date(view)
    yield from _route(view)
    if view.subject:
        yield from _subject(view.subject, view)
    else:
        yield "subject:empty"


def _form(view: View) -> Iterator[str]:
    for name, values in view.names.items():
        if name in _WRITTEN_BY_SENDERS and len(values) > 1:
            yield f"twice:{name}"
    for name, _ in view.headers:
        if not name.istitle() and name not in _USUAL_CASE and name.lower() in _WRITTEN_BY_SENDERS:
            yield f"case:{name}"


def _sender(view: View) -> Iterator[str]:
    sender = view.sender
    if sender is None:
        yield "from:none"
        return
    local, domain = sender.addr.rpartition("@")[0], view.sender_domain
    org = organisation(domain)
    yield f"fromtld:{domain.rpartition('.')[2][:6]}"
    yield f"fromlabels:{domain.count('.')}"
    yield f"local:{shape(local)[:20]}"
    if any(char.isdigit() for char in local):
        yield f"local:digits:{'free' if org.partition('.')[0] in _FREE else 'own'}"
    if view.reply_to:
        reply = view.reply_to[0].addr
        is_same = reply.lower() == sender.addr.lower()
        yield f"reply:{'same' if is_same else 'org' if organisation(domain_of(reply)) == org else 'other'}"
    if spoken := view.first("sender"):
        yield "sender:org" if org in spoken.lower() else "sender:other"


def _message_id(view: View) -> Iterator[str]:
    value = view.first("message-id")
    if not value:
        yield "mid:none"
        return
    left, at, right = value.partition("@")
    right = right.rstrip("> ")
    yield f"midlen:{bucket(len(left))}"
    yield f"midright:{'no' if not at else 'ip' if right[-1:].isdigit() else 'host' if '.' in right else 'bare'}"


def _date(view: View) -> Iterator[str]:
    value = view.first("date")
    if not value:
        yield "date:none"
        return
    yield f"date:{_LETTERS.sub('a', _DIGIT.sub('0', value))[:44]}"
    zone = _ZONE.search(value[-14:])
    yield f"zone:{zone.group(1)}{zone.group(3)}{'odd' if int(zone.group(2)) > 13 else ''}" if zone is not None else "zone:none"
    if view.date is None:
        yield "date:invalid"
    elif (received := received_at(view.first("received"))) is not None:
        hours = (received - view.date.timestamp()) / 3600
        steps = ((-48, "days ahead"), (-3, "ahead"), (6, "ok"), (48, "late"))
        yield f"lag:{next((name for bound, name in steps if hours < bound), 'old')}"


def _route(view: View) -> Iterator[str]:
    received = view.names.get("received", [])
    outside, behind = find_border(received)
    yield f"hops:{min(len(received), 9)}"
    if outside is None:
        yield "border:none"
        return
    yield f"after:{min(behind, 5)}"
    yield from _hop(outside)
    if view.sender is not None:
        yield f"border:from:{_met(outside, organisation(view.sender_domain))}"
    if view.return_path:
        yield f"border:path:{_met(outside, organisation(domain_of(view.return_path)))}"


def _hop(hop: Hop) -> Iterator[str]:
    helo, found = hop.helo, hop.found
    yield f"border:rdns:{'none' if not found or found == 'unknown' else 'dynamic' if is_dynamic(found) else 'host'}"
    form = "ip" if helo[-1:].isdigit() else "bare" if "." not in helo else "dynamic" if is_dynamic(helo) else "host"
    yield f"border:helo:{form}"
    if found and "." in helo:
        yield f"border:helo:{'is' if helo == found else 'org' if organisation(helo) == organisation(found) else 'not'}:rdns"


def _met(hop: Hop, org: str) -> str:
    """Whether the host that handed the message over is of this organisation, by what was found or only by what it said."""
    if not org:
        return "other"
    if hop.found and organisation(hop.found) == org:
        return "rdns"
    return "helo" if organisation(hop.helo) == org else "other"


def _subject(subject: str, view: View) -> Iterator[str]:
    if _ANSWER.match(subject):
        yield f"subject:re:{'thread' if 'references' in view.names or 'in-reply-to' in view.names else 'alone'}"
    if _TAG.match(subject):
        yield "subject:tag"
    letters = Counter(map(str.isupper, filter(str.isalpha, subject)))
    if letters:
        yield f"subject:upper:{letters[True] * 5 // letters.total()}"
    yield f"subject:len:{bucket(len(subject))}"
    for mark, name in _MARKS:
        if mark in subject:
            yield f"subject:{name}"
    if subject[:1].islower():
        yield "subject:lower"
    yield from _subject_source(subject, view)


def _subject_source(subject: str, view: View) -> Iterator[str]:
    raw = view.first("subject")
    if _GAP.search(raw):
        yield "subject:gap"
    if "=?" in raw:
        charset, _, rest = raw.partition("=?")[2].partition("?")
        yield f"subject:charset:{charset.lower()[:16]}:{rest[:1].lower()}"
    elif not raw.isascii():
        yield "subject:raw8"
    local = view.first("to").strip(' <"').partition("@")[0].lower()
    if len(local) > 2 and local in subject.lower():
        yield "subject:recipient"
