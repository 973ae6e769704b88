"""The whole judgement: senders the tenant is sure of, engines and their symbols, the rule that fuses them, and the breaker."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import actors.spam_rules
from core.errors import ConfigurationError, InvalidInputError
from core.settings import load_settings
from mail.spam.engines.engine import MAX_SENT, Breaker, EngineUnavailable, Envelope, header_safe
from mail.spam.engines.fusion import RULES, fuse, log_odds, share
from mail.spam.engines.spamc import Spamc
from mail.spam.engines.symbols import TABLES, indicators_of
from mail.spam.judging import GuardedEngine, Rules, judge, return_path
from mail.spam.learning import LEARNED_FROM, Delta
from mail.spam.senders import SenderLists, apply_lists, normalise_pattern
from mail.spam.verdict import MAX_EVIDENCE, Context, EngineScore, Indicator, Severity, Verdict

LETTER = b"Return-Path: <bob@x.test>\r\nFrom: Bob <bob@x.test>\r\nTo: ann@acme.test\r\nSubject: Hi\r\n\r\nGood day\r\n"
PLAIN = Verdict(0.3, False, 0.5, (), (), b"", -0.8)


class Engine:
    """Says what it was told to, or is down."""

    def __init__(self, name: str = "rspamd", said: EngineScore | None = None) -> None:
        self.name, self.said = name, said
        self.asked: list[Envelope] = []

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        self.asked.append(envelope)
        if self.said is None:
            raise EngineUnavailable("It did not answer.")
        return self.said

    def learn(self, source: bytes, envelope: Envelope, *, is_spam: bool) -> None:
        """Not asked for here."""


def spammy(name: str = "rspamd") -> EngineScore:
    return EngineScore(name, 30.0, 10.0, ("GTUBE",))


# Senders.


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        (" Ann@ACME.test ", "ann@acme.test"), ("ACME.test", "acme.test"), ("@acme.test", "acme.test"), ("*.acme.test", "acme.test"),
        ("acme.test.", "acme.test"), ("bücher.example", "xn--bcher-kva.example"), ("jo@bücher.example", "jo@xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_patterns_have_one_normal_form(typed: str, normal: str) -> None:
    assert normalise_pattern(typed) == normal


@pytest.mark.parametrize("typed", ["", "acme", "a b.test", "@", "a@", "*", "ann@@acme.test", "acme.test/x", "x\n.test"])
def test_what_is_no_pattern_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInputError):
        normalise_pattern(typed)


def test_the_narrowest_pattern_counts() -> None:
    lists = SenderLists(allow=frozenset({"ann@spam.test", "good.spam.test"}), block=frozenset({"spam.test"}))
    found = {
        sender: lists.find(sender)
        for sender in ("ann@spam.test", "bob@spam.test", "x@good.spam.test", "x@deep.bad.spam.test", "x@notspam.test")
    }
    assert [each and each[0] for each in found.values()] == ["allow", "block", "allow", "block", None]
    assert SenderLists(block=frozenset({"xn--bcher-kva.example"})).find("Jo@Bücher.example") == ("block", "xn--bcher-kva.example")
    assert [lists.find(nothing) for nothing in ("", "spam.test", "@spam.test", "no address")] == [None] * 4
    assert SenderLists().find("ann@spam.test") is None


def test_a_sure_sender_goes_before_any_score() -> None:
    lists = SenderLists(allow=frozenset({"good.test"}), block=frozenset({"bad.test"}))
    blocked = apply_lists(PLAIN, lists, "x@bad.test")
    assert (blocked.is_spam, blocked.score, blocked.indicators[0].code) == (True, 1.0, "sender_blocked")
    allowed = apply_lists(replace(PLAIN, score=0.99, is_spam=True), lists, "x@good.test")
    assert (allowed.is_spam, allowed.score, allowed.indicators[0].code) == (False, 0.0, "sender_allowed")
    assert apply_lists(PLAIN, lists, "x@other.test") is PLAIN


def test_a_forged_sender_is_allowed_nothing() -> None:
    forged = replace(PLAIN, score=0.9, is_spam=True, indicators=(Indicator("auth_dmarc_fail", Severity.HIGH, "dmarc=fail"),))
    judged = apply_lists(forged, SenderLists(allow=frozenset({"good.test"})), "x@good.test")
    assert (judged.is_spam, judged.score, judged.notes) == (True, 0.9, ("allow_list_not_applied",))


# Engines.


def test_the_envelope_names_the_tenant_and_no_address_as_the_user() -> None:
    engine = Engine(said=spammy())
    judge(LETTER, Rules(engines=(GuardedEngine(engine),), user="tenant-1"), sender="bob@x.test", recipients=["ann@acme.test"])
    assert engine.asked == [Envelope("tenant-1", "bob@x.test", ("ann@acme.test",))]
    assert return_path(b"Subject: x\n\nReturn-Path: <evil@x.test>") == ""


def test_an_engine_that_is_down_is_a_note_and_the_others_count() -> None:
    up, down = Engine(said=spammy()), Engine("spamassassin")
    alone = judge(LETTER, Rules(), sender="bob@x.test")
    both = judge(LETTER, Rules(engines=(GuardedEngine(up), GuardedEngine(down))), sender="bob@x.test")
    assert [each.engine for each in both.engines] == ["rspamd"]
    assert both.notes == (*alone.notes, "engine_unavailable:spamassassin")
    assert both.score > alone.score
    none = judge(LETTER, Rules(engines=(GuardedEngine(down),)), sender="bob@x.test")
    assert (none.score, none.is_spam, none.notes) == (alone.score, alone.is_spam, (*alone.notes, "engine_unavailable:spamassassin"))


def test_an_engine_is_not_given_everything() -> None:
    engine = Engine(said=spammy())
    large = judge(LETTER + b"x" * MAX_SENT, Rules(engines=(GuardedEngine(engine),)), sender="bob@x.test")
    assert (engine.asked, large.engines, "too_large_for_engines" in large.notes) == ([], (), True)


def test_the_logit_is_what_everybodys_check_says_whatever_the_tenant_has_learned() -> None:
    delta = Delta()
    plain = judge(LETTER, Rules(), sender="bob@x.test")
    for _ in range(30):
        delta.learn(plain.hashes, True)
        delta.learn(((LEARNED_FROM << 29) | 5).to_bytes(4, "little"), False)
    own = judge(LETTER, Rules(context=Context(delta=delta)), sender="bob@x.test")
    assert own.score > plain.score
    assert own.logit == pytest.approx(plain.logit)


@pytest.mark.parametrize("engines", RULES, ids=lambda each: "+".join(sorted(each)))
def test_what_engines_say_moves_the_probability_their_way_and_no_more_than_that(engines: frozenset[str]) -> None:
    def fused(part: float) -> Verdict:
        return fuse(PLAIN, [EngineScore(name, part * 10, 10.0, ()) for name in sorted(engines)])

    low, high, absurd = fused(-0.5), fused(1.5), fused(1e9)
    assert low.score < high.score <= absurd.score < 1.0
    assert (high.is_spam, low.is_spam) == (high.score >= 0.5, low.score >= 0.5)
    assert fused(float("nan")).score == fused(0.0).score


def test_an_engine_without_a_rule_is_kept_and_counts_nothing() -> None:
    fused = fuse(PLAIN, [spammy("other")])
    assert (fused.score, len(fused.engines), fused.indicators[0].code) == (PLAIN.score, 1, "engine_symbol")
    assert fuse(PLAIN, []) is PLAIN


def test_log_odds_and_shares_have_bounds() -> None:
    assert log_odds(0.5) == 0.0
    assert (round(log_odds(1.0), 6), round(log_odds(0.0), 6)) == (9.0, -9.0)
    assert share(EngineScore("rspamd", 7.5, 15.0, ())) == 0.5
    assert share(EngineScore("rspamd", 7.5, 0.0, ())) == 1.5
    assert share(EngineScore("rspamd", -1e9, float("nan"), ())) == -1.0


def test_symbols_become_our_indicators_and_the_others_stay_evidence() -> None:
    said = EngineScore(
        "rspamd", 1.0, 2.0, ("PHISHING", "HTTP_TO_HTTPS", "SOMETHING", "ELSE\r\n", *(f"LONG_{number}" for number in range(99)))
    )
    found = {each.code: each for each in indicators_of(said)}
    assert (found["link_text_mismatch"].severity, found["link_text_mismatch"].evidence) == (
        Severity.MEDIUM,
        "rspamd: PHISHING, HTTP_TO_HTTPS",
    )
    assert found["engine_symbol"].evidence.startswith("rspamd: SOMETHING, ELSE, LONG_0")
    assert all(len(each.evidence) <= MAX_EVIDENCE for each in found.values())
    ours = Indicator("link_text_mismatch", Severity.HIGH, "where it is")
    assert [each.code for each in fuse(replace(PLAIN, indicators=(ours,)), [said]).indicators] == ["link_text_mismatch", "engine_symbol"]
    assert list(indicators_of(EngineScore("other", 1, 1, ()))) == []
    assert all(severity in Severity and code for table in TABLES.values() for code, severity in table.values())


@pytest.mark.parametrize(
    ("value", "safe"), [("tenant-1", True), ("", False), ("a b", False), ("x\r\nEvil: 1", False), ("é", False), ("x" * 501, False)]
)
def test_a_header_takes_no_more_than_one_plain_word(value: str, safe: bool) -> None:
    assert (header_safe(value) == value) is safe


# The breaker.


def test_a_breaker_lets_one_probe_through_after_its_time() -> None:
    moment = [0.0]
    breaker = Breaker(failures=2, seconds=10, clock=lambda: moment[0])
    for _ in range(2):
        assert breaker.may_ask()
        breaker.failed()
    assert not breaker.may_ask()
    moment[0] = 10.0
    assert [breaker.may_ask(), breaker.may_ask()] == [True, False]
    breaker.succeeded()
    assert [breaker.may_ask(), breaker.may_ask()] == [True, True]


def test_an_engine_is_left_alone_while_its_breaker_is_open() -> None:
    engine = Engine()
    guarded = GuardedEngine(engine, Breaker(failures=1, seconds=1000))
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            guarded.scan(b"", Envelope("t"))
    assert len(engine.asked) == 1


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [("rspamd_url", "rspamd.test:11333"), ("spamd_url", "spamd.test:783"), ("spam_engine_timeout", 0), ("spam_feedback_per_hour", 0)],
)
def test_a_wrong_setting_stops_the_start(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name.upper()):
        load_settings(**{name: value})


def test_engines_are_those_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(rspamd_url="http://127.0.0.1:11333", rspamd_password="x", spamd_url="/run/spamd.sock")
    monkeypatch.setattr(actors.spam_rules, "get_settings", lambda: settings)
    assert [each.engine.name for each in actors.spam_rules.engines()] == ["rspamd", "spamassassin"]
    assert actors.spam_rules.engines() is actors.spam_rules.engines()
    assert "x'" not in repr(settings.rspamd_password)
    monkeypatch.setattr(actors.spam_rules, "get_settings", lambda: load_settings(rspamd_url=""))
    assert actors.spam_rules.engines() == ()


def test_spamassassin_is_reached_over_a_unix_socket_too(tmp_path: Path) -> None:
    path = str(tmp_path / "spamd.sock")
    with pytest.raises(EngineUnavailable):
        Spamc(path, timeout=5).scan(b"x", Envelope("t"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(65_536):
                    pass
                connection.sendall(b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 6.1 / 5.0\r\n\r\nA,B\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        said = Spamc(path, timeout=30).scan(b"Subject: x\r\n\r\n", Envelope("t"))
        thread.join(30)
    assert said == EngineScore("spamassassin", 6.1, 5.0, ("A", "B"))
