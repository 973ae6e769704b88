"""Every indicator: a message that shows it, and one that nearly does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mail.spam.check import NOTHING_KNOWN, judge
from mail.spam.indicators.table import INDICATORS, found, sentence
from mail.spam.verdict import MAX_EVIDENCE, Context
from tests.unit.spam_archives import new_file, new_rar
from tests.unit.spam_mail import HEAD, TEXT, letter, page, with_file, zipped

AUTH = "Authentication-Results"
TRUSTING = Context(trusted_authserv_ids=frozenset({"mx.acme.example"}))
FAILED = "mx.acme.example; spf=fail smtp.mailfrom=x.example; dkim=fail (bad) header.d=x.example; dmarc=fail header.from=baker.example"
PASSED = "mx.acme.example; spf=pass smtp.mailfrom=x.example; dkim=pass; dmarc=pass"
BOMB = zipped([("a.txt", b"\0" * 101_000_000)])
LONG = " ".join(["river garden"] * 30)
NEW_RAR = new_rar(new_file("a.txt"))
OFFICE = [("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>")]
RAR = b"Rar!\x1a\x07\x00" + b"\0\0\x73\x80\x00" + b"\0" * 20
RAR_OPEN = b"Rar!\x1a\x07\x00" + b"\0\0\x73\x00\x00" + b"\0" * 20

CASES: list[tuple[str, bytes, bytes]] = [
    # code, a message that shows it, one that nearly does
    ("display_name_spoof", letter(From='"PayPal Service" <a@baker.example>'), letter(From='"Pay Palmer" <a@baker.example>')),
    ("display_name_spoof", letter(From='"ceo@acme.example" <a@baker.example>'), letter(From='"mo@baker.example" <a@baker.example>')),
    ("display_name_spoof", letter(From='"PayPaI" <a@baker.example>'), letter(From="PayPal <service@paypal.com>")),
    ("lookalike_domain", letter(From="a@paypa1.com"), letter(From="a@paypal.com")),
    ("lookalike_domain", letter(From="a@rnicrosoft.com"), letter(From="a@macrosoft-garden.com")),
    ("lookalike_domain", letter(From="a@faceboook.com"), letter(From="a@notebook.com")),
    ("lookalike_domain", letter(From="a@xn--pypal-4ve.com"), letter(From="a@xn--mnchen-3ya.de")),
    ("brand_in_domain", letter(From="a@paypal-service.com"), letter(From="a@paypalace.com")),
    ("punycode_domain", letter(From="a@xn--mnchen-3ya.de"), letter(From="a@munich.de")),
    ("mixed_script_domain", letter(From="a@xn--grden-6ve.com"), letter(From="a@xn--80ak6aa92e.com")),
    ("reply_to_mismatch", letter(Reply_To="a@cooper.example"), letter(Reply_To="a@sales.baker.example")),
    ("reply_to_mismatch", letter(Reply_To="a@cooper.example"), letter(Reply_To="a@cooper.example", List_Id="<x.y>")),
    ("reply_to_free_mail", letter(Reply_To="a@gmail.com"), letter(From="a@gmx.de", Reply_To="a@gmail.com")),
    ("return_path_mismatch", letter(Return_Path="<a@cooper.example>"), letter(Return_Path="<a@bounce.baker.example>")),
    ("message_id_mismatch", letter(Message_ID="<1@cooper.example>"), letter(Message_ID="<1@mail.baker.example>")),
    ("sender_is_recipient", letter(To="mo@baker.example"), letter(To="jo@baker.example")),
    ("link_text_mismatch", page('<a href="http://evil.example/">www.bank.com</a>'), page('<a href="http://www.bank.com/x">bank.com</a>')),
    ("lookalike_link", letter("http://paypa1.com/x"), letter("http://paypal.com/x")),
    ("brand_in_link", letter("https://paypal.com.evil.info/x"), letter("https://evil.info/paypal.com")),
    ("ip_link", letter("http://192.0.2.1/x"), letter("http://one.192.example/x")),
    ("ip_link", page('<a href="http://0xC0000201/">x</a>'), page('<a href="http://0xC0000201.example/">x</a>')),
    ("userinfo_link", letter("http://www.paypal.com@evil.example/"), letter("http://evil.example/www.paypal.com@x")),
    ("punycode_link", letter("https://xn--mnchen-3ya.de/"), letter("https://munich.de/xn--x")),
    ("odd_port_link", letter("http://evil.example:8765/"), letter("http://good.example:8080/")),
    ("shortened_link", letter("https://bit.ly/abc"), letter("https://habit.ly/abc")),
    ("many_subdomains_link", letter("http://a.b.c.d.e.evil.example/"), letter("http://a.b.evil.example/")),
    ("script_link", page('<a href="java\tscript:x()">x</a>'), page('<a href="https://a.example/javascript:">x</a>')),
    ("script_link", page('<a href="data:text/html;base64,AA">x</a>'), page('<a href="data:image/png;base64,AA">x</a>')),
    ("free_hosting_link", letter("https://abc.web.app/"), letter("https://web.app.example/")),
    ("too_many_links", letter("\n".join(f"http://a.example/{n}" for n in range(500))), letter("http://a.example/1\n" * 500)),
    ("dangerous_attachment", with_file("setup.exe", b"x"), with_file("setup.txt", b"x")),
    ("dangerous_attachment", with_file("photo.dat", b"MZ\x90\0"), with_file("photo.dat", b"MX\x90\0")),
    ("dangerous_attachment", with_file("a.com", b"x"), with_file("www.a.com", b"x", "text/plain")),
    ("double_extension", with_file("invoice.pdf.exe", b"x"), with_file("invoice.v2.pdf", b"%PDF-1.4 xxx")),
    ("double_extension", with_file("invoice" + " " * 30 + ".scr", b"x"), with_file("in voice.pdf", b"%PDF-1.4 xxx")),
    ("html_attachment", with_file("a.html", b"<p>"), with_file("a.txt", b"<p>", "text/plain")),
    ("macro_document", with_file("a.docm", b"x"), with_file("a.docx", b"x")),
    ("macro_document", with_file("a.docx", zipped([*OFFICE, ("word/vbaProject.bin", b"x")])), with_file("a.docx", zipped(OFFICE))),
    ("encrypted_archive", with_file("a.zip", zipped([("a.txt", b"x")], encrypted=True)), with_file("a.zip", zipped([("a.txt", b"x")]))),
    ("encrypted_archive", with_file("a.rar", RAR), with_file("a.rar", RAR_OPEN)),
    ("dangerous_in_archive", with_file("a.zip", zipped([("b.js", b"x")])), with_file("a.zip", zipped([("b.json", b"x")]))),
    (
        "dangerous_in_archive",
        with_file("a.zip", zipped([("b.zip", zipped([("c.lnk", b"x")]))])),
        with_file("a.jar", zipped([("b.class", b"x")])),
    ),
    ("nested_archive", with_file("a.zip", zipped([("b.zip", zipped([("c.txt", b"x")]))])), with_file("a.zip", zipped([("zip.txt", b"x")]))),
    ("unlisted_archive", with_file("a.rar", NEW_RAR[:-9]), with_file("a.rar", NEW_RAR)),
    ("archive_bomb", with_file("a.zip", BOMB), with_file("a.zip", zipped([("a.txt", b"\0" * 1_000_000)]))),
    ("attachment_type_mismatch", with_file("a.pdf", b"PK\x03\x04 no pdf"), with_file("a.pdf", b"\n%PDF-1.7 is one")),
    ("hidden_text", page(f'<div style="display:none">{LONG}</div>'), page('<div style="display:none">Your order is on its way</div>')),
    ("hidden_text", page(f'<font color="#ffffff">{LONG}</font>'), page(f'<div bgcolor="#000"><font color="#ffffff">{LONG}</font></div>')),
    ("hidden_text", page(f'<span style="font-size:0px">{LONG}</span>'), page(f'<span style="font-size:10px">{LONG}</span>')),
    ("zero_width_characters", letter("ver\u200bify yo\u200bur acc\u200bount"), letter("\ufeffHello \u200b you \u200b and \u200b me")),
    ("mixed_script_words", letter("Your p\u0430ssword for P\u0430yPal"), letter("Привет, this is a test of два языка")),
    ("form_in_mail", page("<form action=x><input name=a></form>"), page("<form>nothing to fill in</form>")),
    ("password_field", page("<form><input type=password></form>"), page("<p>input type=password</p>")),
    ("script_in_mail", page("<script>x()</script>"), page("<p>a script</p>")),
    ("refresh_in_mail", page('<meta http-equiv="refresh" content="0;url=x">'), page('<meta name="viewport">')),
    ("image_only", letter('<img src="http://a.example/a.png">', "text/html"), page('<img src="http://a.example/a.png">')),
    ("obfuscated_words", letter("Cheap V1agra and C1alis"), letter("a cheap viagra joke")),
    ("obfuscated_words", letter("now with  v i a g r a  for all"), letter("rows a b of c and d")),
    ("split_words", page("vi<x>ag</x>ra " * 5), page("vi<b>ag</b>ra " * 5)),
    ("urgency_wording", letter("Reply within 24 hours."), letter("The shop opens 24 hours.")),
    ("urgency_wording", letter("Antworten Sie innerhalb von 24 Stunden."), letter("Es dauert 24 Stunden.")),
    ("credential_wording", letter("Please verify your account"), letter("You can close your account")),
    (
        "credential_wording",
        letter("Bitte bestätigen Sie Ihre Daten und verifizieren Sie alles, Ihr Konto wurde gesperrt"),
        letter("Das Konto ist alt"),
    ),
    ("credential_wording", letter("Votre compte sera suspendu"), letter("Le compte rendu")),
    ("credential_wording", letter("su cuenta ha sido bloqueada"), letter("la cuenta, por favor")),
    (
        "credential_pressure",
        letter("Verify your account within 24 hours: http://a.example/"),
        letter("Verify your account within 24 hours"),
    ),
    (
        "advance_fee_wording",
        letter("The deceased left ten million dollars and no next of kin. You are the beneficiary of the fund."),
        letter("The beneficiary of the fund is named in the contract."),
    ),
    ("shouting_subject", letter(Subject="BUY THESE THINGS NOW"), letter(Subject="RFC 5322 ABNF")),
    ("missing_date", letter(Date=None), letter()),
    ("invalid_date", letter(Date="yesterday"), letter(Date="6 Jan 25 10:00 GMT")),
    ("date_in_future", letter(Date="Fri, 10 Jan 2025 10:00:00 +0000"), letter(Date="Tue, 07 Jan 2025 10:00:00 +0000")),
    ("missing_message_id", letter(Message_ID=None), letter()),
    ("invalid_message_id", letter(Message_ID="1234"), letter(Message_ID="<1234@baker.example>")),
    ("missing_from", letter(From=None), letter(From="a@b.example")),
    ("several_from", letter(X_A="a\r\nFrom: b@c.example"), letter(Sender="b@c.example")),
    ("fake_reply", letter(Subject="Re: our talk"), letter(Subject="Re: our talk", In_Reply_To="<a@b>")),
    ("undisclosed_recipients", letter(To="undisclosed-recipients:;"), letter(To="a@b.example, c@d.example")),
    ("undisclosed_recipients", letter(To=None), letter()),
    ("malformed_message", letter(X_A="a\r\nno header at all"), letter(X_A="a\r\n folded")),
]


def codes(source: bytes, context: Context = NOTHING_KNOWN) -> set[str]:
    return {each.code for each in judge(source, context, None, clock=lambda: 0.0).indicators}


@pytest.mark.parametrize(("code", "shows", "nearly"), CASES, ids=[f"{code}-{number}" for number, (code, _, _) in enumerate(CASES)])
def test_an_indicator_fires_for_what_it_means_and_not_for_what_is_near(code: str, shows: bytes, nearly: bytes) -> None:
    assert code in codes(shows)
    assert code not in codes(nearly)


def test_a_plain_letter_shows_nothing() -> None:
    assert codes(letter()) == set()


def test_results_of_a_trusted_server_count_and_those_of_others_do_not() -> None:
    failures = {"auth_spf_fail", "auth_dkim_fail", "auth_dmarc_fail"}
    assert failures <= codes(letter(Authentication_Results=FAILED), TRUSTING)
    assert not failures & codes(letter(Authentication_Results=FAILED))
    assert not failures & codes(letter(Authentication_Results=FAILED.replace("mx.acme", "mx.evil")), TRUSTING)
    assert not failures & codes(letter(Authentication_Results=PASSED), TRUSTING)


def test_only_the_newest_result_of_the_trusted_server_counts() -> None:
    older = letter(Authentication_Results=f"{PASSED}\r\n{AUTH}: {FAILED}")
    assert not codes(older, TRUSTING) & {"auth_spf_fail", "auth_dkim_fail", "auth_dmarc_fail"}


def test_look_alikes_of_the_tenant_s_own_domain_and_of_its_brands_are_seen() -> None:
    context = Context(own_domains=frozenset({"gardenweekly.example"}), brands={"wheelworks": frozenset({"wheelworks.example"})})
    assert "lookalike_domain" in codes(letter(From="a@gardenweek1y.example"), context)
    assert "lookalike_domain" not in codes(letter(From="a@gardenweek1y.example"))
    assert "lookalike_domain" not in codes(letter(From="a@gardenweekly.example"), context)
    assert "display_name_spoof" in codes(letter(From="Wheelworks <a@baker.example>"), context)
    assert "display_name_spoof" not in codes(letter(From="Wheelworks <a@wheelworks.example>"), context)


def test_every_code_has_a_severity_and_a_sentence_and_is_tried() -> None:
    elsewhere = {"unparsable", "dkim_valid", "dkim_invalid", "auth_spf_fail", "auth_dkim_fail", "auth_dmarc_fail"}
    assert {code for code, _, _ in CASES} | elsewhere == set(INDICATORS)
    assert all(sentence(code).endswith(".") for code in INDICATORS)


def test_evidence_is_one_short_harmless_line() -> None:
    evidence = found("ip_link", "a\r\nb\x00\x1b[31m\u202e" + "x" * 1000).evidence
    assert len(evidence) == MAX_EVIDENCE
    assert evidence.isprintable()


def test_several_alike_findings_are_said_once() -> None:
    verdict = judge(letter("http://192.0.2.1/ http://192.0.2.2/"), NOTHING_KNOWN, None)
    assert [each.code for each in verdict.indicators].count("ip_link") == 1


def test_the_gravest_come_first() -> None:
    source = letter("http://192.0.2.1/ http://paypa1.com/", Date=None)
    severities = [str(each.severity) for each in judge(source, NOTHING_KNOWN, None).indicators]
    assert severities == sorted(severities, key=["high", "medium", "low", "info"].index)


def test_context_does_not_leak_from_one_check_to_the_next() -> None:
    context = Context(own_domains=frozenset({"gardenweekly.example"}))
    assert "lookalike_domain" in codes(letter(From="a@gardenweek1y.example"), context)
    assert "lookalike_domain" not in codes(letter(From="a@gardenweek1y.example"), replace(context, own_domains=frozenset()))


def test_a_letter_is_built_as_the_tests_think() -> None:
    assert letter().startswith(b"Received: from mail.baker.example")
    assert TEXT.encode() in letter()
    assert set(HEAD) <= {line.split(":")[0] for line in letter().decode().splitlines()}


def test_the_page_about_spam_lists_every_indicator_as_it_is() -> None:
    page_text = (Path(__file__).resolve().parent.parent.parent / "docs" / "spam.md").read_text()
    missing = [code for code, (severity, text) in INDICATORS.items() if f"| `{code}` | {severity} | {text} |" not in page_text]
    assert missing == []
