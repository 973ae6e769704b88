"""The header and the structure of a message as tokens that mean the same at any site: presence, relations and shapes, never names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from mail.addresses import domain_of
from mail.spam.hops import border, is_dynamic, organisation, read_hops
from mail.spam.view import View
from mail.spam.wordlists import listed

_KNOWN = listed("""from to cc bcc subject date message-id mime-version content-type content-transfer-encoding content-disposition content-language
    reply-to in-reply-to references sender return-path received x-mailer user-agent x-priority x-msmail-priority x-mimeole importance
    priority organization organisation errors-to precedence list-id list-unsubscribe list-subscribe list-post list-help list-archive
    list-owner mailing-list x-originating-ip x-originalarrivaltime x-accept-language thread-index thread-topic x-sender x-newsreader
    x-face x-url x-authentication-warning disposition-notification-to return-receipt-to resent-from resent-to resent-date
    resent-message-id auto-submitted x-loop x-complaints-to comments keywords approved-by status lines encoding content-class
    x-operating-system x-mailing-list x-beenthere x-mailman-version list-unsubscribe-post feedback-id dkim-signature arc-seal
    domainkey-signature received-spf mail-followup-to x-auto-response-suppress x-no-archive x-keywords""")
_SITE = listed("received return-path status lines delivered-to x-beenthere")
_ORDERED = listed("""from to cc subject date message-id mime-version content-type content-transfer-encoding reply-to x-mailer user-agent in-reply-to
    references sender x-priority x-msmail-priority x-mimeole importance content-disposition""")
_FREE = listed("""gmail hotmail yahoo aol msn excite lycos netscape mail rediffmail juno earthlink outlook live gmx web yandex icloud bigfoot
    angelfire hotbot altavista usa email mailcity walla eudoramail freemail""")
_NO_MARKS = re.compile(r"[^\"<>@()=?, ]+")
_WORD = re.compile(r"[A-Za-z]+")
_SHAPE_RUN = re.compile(r"([A-Za-z0#])\1*")
_RE = re.compile(r"^\s*(?:re|aw|sv|antw|fwd?|fw)(?:\[\d+\])?\s*:", re.IGNORECASE)
_TAG = re.compile(r"^\s*(?:re:\s*)?\[[^\]]{2,30}\]", re.IGNORECASE)
_GAP = re.compile(r"\s{4,}\S+\s*$")
_TO_SHAPE = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "A" * 26 + "a" * 26 + "0" * 10)
_BUCKETS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 2000, 4000, 8000, 16000, 32000)


def bucket(number: int) -> int:
    """The index of the largest bound that is not above the number: steps of about 1.6."""
    low = 0
    for index, bound in enumerate(_BUCKETS):
        if number < bound:
            break
        low = index
    return low


def shape(text: str) -> str:
    """Runs of letters and digits as one letter and a rough length: `<AB12.cd@x>` is `<A1012.a1@a1>`."""
    return _SHAPE_RUN.sub(lambda run: run.group(1) + str(min(bucket(len(run.group())), 9)), text[:120].translate(_TO_SHAPE))


def header_tokens(view: View) -> Iterator[str]:
    """Of the header."""
    yield from _presence(view)
    yield from _identity(view)
    yield from _message_id(view)
    yield from _date(view)
    yield from _route(view)
    yield from _subject(view)
    yield from _mailer(view)


def _presence(view: View) -> Iterator[str]:
    names = [name.lower() for name, _ in view.headers]
    counts = Counter(names)
    for name in counts:
        if name in _KNOWN and name not in _SITE:
            yield f"has:{name}"
    for name in (
        "from",
        "to",
        "subject",
        "date",
        "message-id",
        "mime-version",
        "reply-to",
        "in-reply-to",
        "references",
        "cc",
        "user-agent",
        "x-mailer",
        "content-type",
    ):
        if name not in counts:
            yield f"no:{name}"
        elif counts[name] > 1:
            yield f"twice:{name}"
    yield f"x:{bucket(sum(name.startswith('x-') for name in counts))}"
    listed = sum(name.startswith("list-") for name in counts)
    yield f"list:{bucket(listed)}"
    order = [name for name in names if name in _ORDERED]
    for one, other in zip(["^", *order], [*order, "$"], strict=True):
        yield f"then:{one}>{other}"
    for name, _ in view.headers:
        low = name.lower()
        if low in _ORDERED and not name.istitle() and name not in {"Message-ID", "MIME-Version", "X-MSMail-Priority", "X-MimeOLE"}:
            yield f"case:{name}"
    for name, value in view.headers:
        low = name.lower()
        if low in {
            "x-priority",
            "x-msmail-priority",
            "importance",
            "precedence",
            "content-transfer-encoding",
            "auto-submitted",
            "mime-version",
            "content-language",
            "x-accept-language",
        }:
            yield f"value:{low}={value[:24].lower()}"


def _identity(view: View) -> Iterator[str]:
    sender = view.sender
    raw = view.first("from")
    yield f"from:{shape(_NO_MARKS.sub('a', raw))[:30]}"
    if sender is None:
        yield "from:none"
        return
    local, domain = sender.addr.rpartition("@")[0], domain_of(sender.addr)
    org = organisation(domain)
    kind = "free" if org.split(".")[0] in _FREE else "own"
    yield f"from:{kind}"
    yield f"fromtld:{domain.rpartition('.')[2][:6]}"
    yield f"fromlabels:{domain.count('.')}"
    yield f"local:{shape(local)[:20]}"
    if any(char.isdigit() for char in local):
        yield f"local:digits:{kind}"
    name = sender.name
    yield f"name:{'no' if not name else shape(name)[:14]}"
    words = [word.lower() for word in _WORD.findall(name) if len(word) > 2]
    if words:
        yield "name:in-local" if any(word[:5] in local.lower() for word in words) else "name:not-in-local"
        if len(words) > 0 and any(word in domain for word in words):
            yield "name:in-domain"
    if "@" in name:
        yield "name:is-address"
    if name.isupper():
        yield "name:caps"
    yield from _other_addresses(view, org, local)


def _other_addresses(view: View, org: str, local: str) -> Iterator[str]:
    if view.reply_to:
        reply = view.reply_to[0].addr
        yield f"reply:{'same' if view.sender and reply.lower() == view.sender.addr.lower() else 'org' if organisation(domain_of(reply)) == org else 'other'}"
    if "return-path" in view.names:
        path = view.return_path
        same = view.sender and path.lower() == view.sender.addr.lower()
        yield f"path:{'empty' if not path else 'same' if same else 'org' if organisation(domain_of(path)) == org else 'other'}"
        if path and ("bounce" in path.lower() or "=" in path or "return" in path.lower()):
            yield "path:bounce"
    sender = view.first("sender")
    if sender:
        yield "sender:org" if org in sender.lower() else "sender:other"
    to = ", ".join(view.names.get("to", []))[:4000]
    cc = ", ".join(view.names.get("cc", []))[:4000]
    yield f"to:{bucket(to.count('@'))}"
    yield f"cc:{bucket(cc.count('@'))}"
    if "undisclosed" in to.lower():
        yield "to:undisclosed"
    if org and org in to.lower():
        yield "to:own-org"
    if view.sender and view.sender.addr.lower() in to.lower():
        yield "to:self"
    yield f"toform:{shape(_NO_MARKS.sub('a', to[:200]))[:16]}"


def _message_id(view: View) -> Iterator[str]:
    value = view.first("message-id")
    if not value:
        yield "mid:none"
        return
    left, at, right = value.partition("@")
    right = right.rstrip("> ").lower()
    yield f"mid:{shape(left)[:40]}"
    yield f"midclass:{re.sub(r'[a-zA-Z]+', 'a', re.sub(r'[0-9]+', '0', left))[:24]}"
    yield f"midlen:{bucket(len(left))}"
    yield f"midright:{'no' if not at else 'ip' if right[-1:].isdigit() else 'bare' if '.' not in right else 'host'}"
    if not value.startswith("<") or not value.endswith(">"):
        yield "mid:bare"
    org = organisation(view.sender_domain) if view.sender else ""
    yield f"midorg:{'same' if org and organisation(right) == org else 'other'}"
    if "." in right and any(organisation(right) in received for received in view.names.get("received", [])[:12]):
        yield "midorg:received"
    if re.fullmatch(r"<?[0-9a-f]+\$[0-9a-f]+\$[0-9a-f]+", left):
        yield f"mid:outlook:{'mailer' if 'utlook' in view.first('x-mailer') else 'not'}"


def _date(view: View) -> Iterator[str]:
    value = view.first("date")
    if not value:
        yield "date:none"
        return
    yield f"date:{re.sub(r'[A-Za-z]+', 'a', re.sub(r'[0-9]', '0', value))[:44]}"
    zone = re.search(r"([+-])(\d\d)(\d\d)", value[-14:])
    if zone is not None:
        yield f"zone:{zone.group(1)}{zone.group(3)}{'odd' if int(zone.group(2)) > 13 else ''}"
    else:
        yield "zone:none"
    if view.date is None:
        yield "date:invalid"
        return
    received = _received_date(view)
    if received is not None:
        hours = (received - view.date.timestamp()) / 3600
        gap = "future2d" if hours < -48 else "future" if hours < -3 else "ok" if hours < 6 else "day" if hours < 48 else "old"
        yield f"lag:{gap}"


def _received_date(view: View) -> float | None:
    from email.utils import mktime_tz, parsedate_tz

    for value in view.names.get("received", [])[:1]:
        parsed = parsedate_tz(value.rpartition(";")[2])
        if parsed is not None:
            try:
                return float(mktime_tz(parsed))
            except (ValueError, OverflowError):
                return None
    return None


def _route(view: View) -> Iterator[str]:
    received = view.names.get("received", [])
    hops = read_hops(received)
    outside = border(hops)
    yield f"hops:{min(len(received), 9)}"
    if outside is None:
        yield "border:none"
        return
    org = organisation(view.sender_domain) if view.sender else ""
    start = hops.index(outside)
    yield f"after:{min(len(hops) - start - 1, 5)}"
    for prefix, hop in (("border", outside), ("origin", hops[-1])):
        helo, found = hop.helo, hop.found
        yield f"{prefix}:rdns:{'none' if not found or found == 'unknown' else 'dynamic' if is_dynamic(found) else 'host'}"
        form = "ip" if helo[-1:].isdigit() else "bare" if "." not in helo else "dynamic" if is_dynamic(helo) else "host"
        yield f"{prefix}:helo:{form}"
        if found and "." in helo:
            yield f"{prefix}:helo:{'is' if helo == found else 'org' if organisation(helo) == organisation(found) else 'not'}:rdns"
        if org:
            yield f"{prefix}:from:{'rdns' if found and organisation(found) == org else 'helo' if organisation(helo) == org else 'other'}"
        if view.return_path:
            path = organisation(domain_of(view.return_path))
            yield f"{prefix}:path:{'rdns' if found and organisation(found) == path else 'helo' if organisation(helo) == path else 'other'}"
    if org and any(org in value.lower() for value in received):
        yield "route:from"
    joined = " ".join(received[:12]).lower()
    for word in (
        "esmtp",
        "smtp ",
        "http",
        "local",
        "qmail",
        "postfix",
        "exim",
        "uid",
        "tls",
        "esmtps",
        "esmtpa",
        "userid",
        "invoked",
        "microsoft smtp",
        "asmtp",
    ):
        if word in joined:
            yield f"route:{word}"


def _subject(view: View) -> Iterator[str]:
    subject, raw = view.subject, view.first("subject")
    if not subject:
        yield "subject:empty"
        return
    is_reply = _RE.match(subject) is not None
    if is_reply:
        yield f"subject:re:{'thread' if 'references' in view.names or 'in-reply-to' in view.names else 'alone'}"
    if _TAG.match(subject):
        yield "subject:tag"
    letters = [char for char in subject if char.isalpha()]
    upper = sum(char.isupper() for char in letters)
    if letters:
        yield f"subject:upper:{upper * 5 // len(letters)}"
    yield f"subject:len:{bucket(len(subject))}"
    for mark, name in (
        ("!", "bang"),
        ("?", "question"),
        ("$", "dollar"),
        ("%", "percent"),
        ("...", "dots"),
        (",", "comma"),
        ("*", "star"),
        ("#", "hash"),
        ('"', "quote"),
        (":", "colon"),
    ):
        if mark in subject:
            yield f"subject:{name}"
    if _GAP.search(raw):
        yield "subject:gap"
    if "=?" in raw:
        charset = raw.partition("=?")[2].partition("?")
        yield f"subject:charset:{charset[0].lower()[:16]}:{charset[2][:1].lower()}"
    elif not raw.isascii():
        yield "subject:raw8"
    if subject[:1].islower():
        yield "subject:lower"
    local = view.first("to").strip(' <"').partition("@")[0].lower()
    if len(local) > 2 and local in subject.lower():
        yield "subject:recipient"


def _mailer(view: View) -> Iterator[str]:
    mailer = (view.first("x-mailer") or view.first("user-agent"))[:80].lower()
    if not mailer:
        yield "mailer:none"
        return
    words = re.findall(r"[a-z]{2,}", mailer)[:4]
    yield f"mailer:{' '.join(words[:3])}"
    for word in words:
        yield f"mailerword:{word}"
    if not words:
        yield "mailer:no-words"
    if "outlook" in mailer:
        yield f"mailer:outlook:{'ole' if 'x-mimeole' in view.names else 'bare'}:{'thread' if 'thread-index' in view.names else ''}"
