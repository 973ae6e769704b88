"""The spam check as a whole: what it says of good and bad mail, and that nothing breaks it or makes it slow."""

from __future__ import annotations

import base64
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bench.spam.made import family, make
from demo.messages import acme_inbox, globex_inbox
from mail.dkim import Signer, new_private_key
from mail.spam import check as checking
from mail.spam.check import NOTHING_KNOWN, check, judge
from mail.spam.features import GROUPS, read_features, split_groups
from mail.spam.learning import LEARNED_FROM, Delta
from mail.spam.links import read_target
from mail.spam.model import load_model
from mail.spam.page import read_page
from mail.spam.verdict import Context, Severity, Verdict
from mail.spam.view import MAX_BYTES, MAX_TEXT, read_view
from tests.unit import mail_corpus
from tests.unit.spam_archives import packed_7z, seven_list
from tests.unit.spam_mail import letter, page, with_file, zipped
from tests.unit.test_mail_malformed import CASES as MALFORMED

QUICK = 3.0
"""Seconds of CPU: tracing makes three of one, and what is quadratic takes minutes."""
ROOT = Path(__file__).resolve().parent.parent.parent
MATRYOSHKA = b"x"
for _depth in range(30):
    MATRYOSHKA = zipped([(f"{_depth}.zip", MATRYOSHKA)])

HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "binary": lambda: random.Random(1).randbytes(300_000),
    "50 MB of text": lambda: letter("spam " * 10_000_000),
    "50 MB of nothing": lambda: b"\0" * 50_000_000,
    "50 MB of header": lambda: b"A: " + b"b" * 50_000_000,
    "10,000 links": lambda: letter(" ".join(f"http://h{number}.example/p{number}" for number in range(10_000))),
    "10,000 links of HTML": lambda: page(
        "".join(f'<a href="http://h{number}.example/">www.g{number}.example</a>' for number in range(10_000))
    ),
    "10,000 open tags": lambda: page("<div style='color:#ffffff'>" * 10_000),
    "open comments": lambda: page("<!--" * 15_000),
    "open links": lambda: page('<a href="x">' * 5_000),
    "10,000 parts": lambda: letter("--b\r\n\r\nx\r\n" * 10_000 + "--b--", "multipart/mixed; boundary=b"),
    "5,000 boundaries": lambda: b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each) for each in range(5000)
    ),
    "archives in archives": lambda: with_file("a.zip", MATRYOSHKA),
    "an archive that grows": lambda: with_file("a.zip", zipped([("a", b"\0" * 50_000_000), ("b", b"\0" * 60_000_000)])),
    "an archive with 5,000 files": lambda: with_file("a.zip", zipped([(f"{number}.txt", b"") for number in range(5000)])),
    "a hundred archives with long lists": lambda: letter(
        b"--b\r\nContent-Disposition: attachment; filename=a.7z\r\nContent-Transfer-Encoding: base64\r\n\r\n%b\r\n"
        % base64.encodebytes(packed_7z(seven_list(["a" * 100] * 1200)))
        * 100
        + b"--b--",
        "multipart/mixed; boundary=b",
    ),
    "half an archive": lambda: with_file("a.zip", zipped([("a.exe", b"x" * 1000)])[:90]),
    "words without end": lambda: letter("a" * 60_000 + " " + "a." * 30_000),
    "gaps without end": lambda: letter("v i a g r a " * 5_000),
    "brackets": lambda: letter("<" * 60_000, "text/html"),
    "quotes in tags": lambda: page("<a href='" * 6_000),
    "a name without end": lambda: letter(From='"' + "paypal " * 9_000 + '" <a@b.example>'),
    "domains without end": lambda: letter(From="a@" + "xn--" * 9_000 + ".com", Reply_To="a@" + "b." * 9_000),
    "addresses": lambda: letter(To=", ".join(f"u{number}@x.example" for number in range(20_000))),
    "Received without end": lambda: letter(X_A="b\r\n" + "Received: from a (b [192.0.2.1]) by c; x\r\n" * 900 + "X-B: c"),
}


def said(verdict: Verdict) -> set[str]:
    return {each.code for each in verdict.indicators}


def at_leisure(source: bytes, context: Context) -> Verdict:
    """Without a limit in time, so that a slow machine leaves nothing out."""
    return judge(source, context, None, clock=lambda: 0.0)


def assert_whole(verdict: Verdict) -> None:
    assert 0.0 <= verdict.score <= 1.0
    assert verdict.is_spam == (verdict.score >= verdict.threshold)
    hashes = np.frombuffer(verdict.hashes, "<u4")
    assert (np.diff(hashes.astype(np.int64)) > 0).all()
    assert all(each.evidence.isprintable() and len(each.evidence) <= 200 for each in verdict.indicators)
    assert len(verdict.contributions) <= 10


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_gets_a_verdict_and_soon(name: str) -> None:
    source = HOSTILE[name]()
    started = time.process_time()
    verdict = check(source)
    assert time.process_time() - started < QUICK
    assert_whole(verdict)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_mail_gets_a_verdict(name: str) -> None:
    assert_whole(check(MALFORMED[name][0]))


@pytest.mark.parametrize("seed", range(6))
def test_damaged_mail_gets_a_verdict(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(50):
        source = mail_corpus.mutated(mail_corpus.letter(seed * 50 + number), rng)
        verdict = judge(source, NOTHING_KNOWN, load_model(), clock=lambda: 0.0)
        assert_whole(verdict)
        assert not {"features_failed", "indicator_failed"} & set(verdict.notes)


def test_damaged_spam_gets_a_verdict() -> None:
    rng = random.Random(7)
    for source, _ in make(120, 3):
        assert_whole(check(mail_corpus.mutated(source, rng)))


def test_good_mail_of_today_is_left_alone_and_bad_mail_is_found() -> None:
    made = make(240, 424_242)  # other numbers than those that were learned from
    verdicts = [check(source) for source, _ in made]
    flagged_good = [family(number) for number, (_, is_spam) in enumerate(made) if not is_spam and verdicts[number].is_spam]
    found = [verdicts[number].is_spam for number, (_, is_spam) in enumerate(made) if is_spam]
    assert flagged_good == []
    assert sum(found) >= 0.85 * len(found)


def test_the_letters_of_the_demo_are_left_alone() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    letters = [*acme_inbox(now), *globex_inbox(now)]
    assert [each for each in letters if check(each.raw).is_spam] == []


def test_a_dangerous_attachment_makes_a_letter_more_suspicious() -> None:
    assert check(with_file("invoice.pdf.exe", b"MZ")).score > check(with_file("invoice.pdf", b"%PDF-1.4 a")).score + 0.05


@pytest.mark.parametrize("number", range(12))
def test_how_lines_end_says_nothing(number: int) -> None:
    """Over IMAP and SMTP a line ends with two characters, in what is learned from and in many a mailbox file with one."""
    source = make(12, 31)[number][0].replace(b"\r\n", b"\n")
    kept, sent = check(source), check(source.replace(b"\n", b"\r\n"))
    assert (sent.logit, sent.hashes) == (kept.logit, kept.hashes)
    assert {each.code for each in sent.indicators} == {each.code for each in kept.indicators}


def test_the_same_bytes_give_the_same_verdict_in_another_process() -> None:
    source = make(2, 5)[1][0]
    program = (
        "import sys, hashlib; from mail.spam.check import judge, NOTHING_KNOWN; from mail.spam.model import load_model;"
        "print(hashlib.sha256(repr(judge(sys.stdin.buffer.read(), NOTHING_KNOWN, load_model(), clock=lambda: 0.0)).encode()).hexdigest())"
    )
    digests = {hashlib.sha256(repr(judge(source, NOTHING_KNOWN, load_model(), clock=lambda: 0.0)).encode()).hexdigest()}
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=source,
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        )
        digests.add(done.stdout.decode().strip())
    assert len(digests) == 1


def test_without_a_model_only_a_grave_finding_makes_spam() -> None:
    many = letter(
        "verify your account within 24 hours http://192.0.2.1/ http://a.example:99/",
        Date=None,
        Message_ID=None,
        From="PayPal <a@b.example>",
    )
    harmless, grave = judge(many, NOTHING_KNOWN, None), judge(with_file("a.exe", b"MZ"), NOTHING_KNOWN, None)
    assert not any(each.severity is Severity.HIGH for each in harmless.indicators)
    assert (harmless.is_spam, harmless.score < harmless.threshold, harmless.contributions) == (False, True, ())
    assert grave.is_spam
    assert "model_missing" in harmless.notes
    assert not judge(letter(), NOTHING_KNOWN, None).is_spam


def test_a_threshold_of_the_caller_s_counts() -> None:
    source = letter()
    assert check(source, Context(threshold=0.0)).is_spam
    assert not check(source, Context(threshold=1.0)).is_spam
    assert check(source, Context(threshold=0.3)).threshold == 0.3


def test_the_reasons_are_words_of_the_message_and_add_up() -> None:
    model = load_model()
    assert model is not None
    source = make(2, 8)[1][0]
    verdict = check(source)
    assert len(verdict.contributions) == 10
    assert all(each.name.partition(":")[0] in GROUPS and "?" not in each.name.partition(":")[2][:1] for each in verdict.contributions)
    features = read_features(read_view(source))
    _, weights = model.weigh(features.groups)
    assert verdict.logit == pytest.approx(model.bias + weights.sum())
    largest = sorted(abs(weights), reverse=True)[:10]
    assert [abs(each.weight) for each in verdict.contributions] == pytest.approx(largest, abs=1e-4)


def test_what_is_kept_for_learning_is_small_and_holds_no_text() -> None:
    verdict = check(letter("confidential wheelbarrow"))
    assert b"wheelbarrow" not in verdict.hashes
    assert 0 < len(verdict.hashes) < 4_000
    assert [len(group) > 0 for group in split_groups(verdict.hashes)] == [number >= LEARNED_FROM for number in range(len(GROUPS))]


def test_a_tenant_s_experience_moves_the_score_and_not_the_raw_one() -> None:
    delta = Delta()
    wanted = [check(letter(f"the harvest festival of our garden club, {number}", From=f"a{number}@club.example")) for number in range(30)]
    unwanted = [check(letter(f"wholesale fertiliser offer number {number}", From=f"b{number}@bulk.example")) for number in range(30)]
    for each in wanted:
        delta.learn(each.hashes, is_spam=False)
    for each in unwanted:
        delta.learn(each.hashes, is_spam=True)
    new_good, new_bad = letter("garden club festival", From="c@club.example"), letter("fertiliser wholesale", From="c@bulk.example")
    for source, step in ((new_good, -1), (new_bad, 1)):
        plain, learned = check(source), check(source, Context(delta=delta))
        assert (learned.score - plain.score) * step > 0
        assert learned.logit == plain.logit


def test_padding_does_not_hide_an_attachment() -> None:
    padded = letter(
        f"--b\r\n\r\n{'x' * (MAX_BYTES + 10)}\r\n--b\r\nContent-Type: application/octet-stream\r\n"
        'Content-Disposition: attachment; filename="a.pdf.exe"\r\n\r\nMZ\r\n--b--\r\n',
        "multipart/mixed; boundary=b",
    )
    verdict = check(padded)
    assert "truncated" in verdict.notes
    assert "double_extension" in said(verdict)


def test_text_beyond_the_limit_is_not_read() -> None:
    view = read_view(letter("a" * (MAX_TEXT + 100)))
    assert (len(view.text), view.notes) == (MAX_TEXT, ["truncated"])


def test_when_time_is_over_the_score_is_given_without_the_rest() -> None:
    ticks = iter(range(1000))
    verdict = judge(letter("http://192.0.2.1/"), NOTHING_KNOWN, load_model(), clock=lambda: float(next(ticks)))
    assert (verdict.indicators, "time_limit" in verdict.notes, verdict.logit != 0.0) == ((), True, True)


def test_a_finding_or_a_feature_that_breaks_costs_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError

    monkeypatch.setattr("mail.spam.findings.linking", broken)
    verdict = check(letter(Date=None))
    assert "indicator_failed" in verdict.notes
    assert "missing_date" in said(verdict)
    monkeypatch.setattr(checking, "read_features", broken)
    assert "features_failed" in check(letter()).notes
    monkeypatch.setattr("mail.spam.view._read_headers", broken)
    assert said(check(letter())) == {"unparsable"}


@pytest.mark.parametrize("algorithm", ["rsa-sha256", "ed25519-sha256"])
def test_signatures_are_verified_again_on_the_raw_bytes(algorithm: str) -> None:
    key = new_private_key(algorithm)
    signed = Signer("baker.example", "s1", key).signed(letter(), datetime(2025, 1, 6, tzinfo=UTC))
    records = {"s1._domainkey.baker.example": key.public_record().encode()}
    context = Context(dkim_lookup=records.get)
    assert "dkim_valid" in said(at_leisure(signed, context))
    assert "dkim_invalid" in said(at_leisure(signed.replace(b"Tuesday", b"Sunday "), context))
    assert not {"dkim_valid", "dkim_invalid"} & said(at_leisure(signed, NOTHING_KNOWN))
    assert not {"dkim_valid", "dkim_invalid"} & said(at_leisure(signed, Context(dkim_lookup=lambda _: None)))
    assert "dkim_invalid" in said(
        at_leisure(letter(DKIM_Signature="v=1; d=baker.example; s=s1; b=x"), Context(dkim_lookup=lambda _: b"v=DKIM1; p=x"))
    )


def test_a_lookup_that_breaks_costs_no_verdict() -> None:
    def lookup(_: str) -> bytes | None:
        raise OSError

    signed = letter(DKIM_Signature="v=1; a=rsa-sha256; d=baker.example; s=s1; bh=AAAA; h=from; b=AAAA")
    verdict = at_leisure(signed, Context(dkim_lookup=lookup))
    assert_whole(verdict)
    assert "dkim_invalid" not in said(verdict)


@pytest.mark.parametrize(
    ("url", "host", "organisation"),
    [
        ("https://a.b.example.co.uk:8443/x?y", "a.b.example.co.uk", "example.co.uk"),
        ("http:\\\\evil.example\\x", "evil.example", "evil.example"),
        ("www.evil.example/x", "www.evil.example", "evil.example"),
        ("http://[2001:db8::1]:80/", "[2001:db8::1]", "[2001:db8::1]"),
        ("mailto:a@b.example", "", ""),
        ("h\nttp://e\tvil.example", "evil.example", "evil.example"),
        ("", "", ""),
        ("://", "", ""),
    ],
)
def test_a_link_is_taken_apart_as_browsers_do(url: str, host: str, organisation: str) -> None:
    target = read_target(url)
    assert (target.host, target.organisation) == (host, organisation)


def test_a_page_is_read_as_it_is_shown() -> None:
    shown = read_page(
        "<title>no</title><p>a<b>b</b>c</p><!-- no --><style>no</style><p hidden style='display:none'>kept</p><div>d&amp;e</div>"
    )
    assert shown.text.split() == ["abc", "kept", "d&e"]
    nested = read_page('<div style="display:none">a<div>b</div>c</div>d')
    assert (nested.text.split(), nested.hidden.split()) == (["d"], ["a", "b", "c"])
    assert read_page('<div style="display:none">all there is').text.strip() == "all there is"
    areas = read_page('<map><area href="http://a.example/"></map><select></select><a href="x">t')
    assert [(each.href, each.text) for each in areas.links] == [("http://a.example/", ""), ("x", "t")]
