"""The wording of letters: what ships, what a tenant's template may do, and the one sentence for what it may not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from core.clock import now
from core.errors import InvalidInputError, NotFoundError, PermanentError
from mail.addresses import Address
from mail.mime_build import OutgoingMail, build_message
from mail.templates.catalogue import KINDS, SECRET_SAMPLE, Source, kind_named, locales_for, normal_locale, shipped, shipped_locales
from mail.templates.language import LARGEST_OUTPUT, TemplateRefused, read_part
from mail.templates.letters import (
    House,
    Letter,
    Template,
    check_template,
    compose,
    duration,
    is_document,
    letter_values,
    sample_values,
    system_values,
)

ACME = House("Acme", link_base_url="https://app.acme.test")
VERIFICATION = KINDS["verification"]
GOOD = Source("Hi {{ username }}", "Go to {{ link }}", "<p>{{ link }}</p>")
XSS = "<img src=x onerror=alert(1)>"


def composed(source: Source, *, username: str = "Robin", token: str = "t0k3n", house: House = ACME) -> Letter:
    template = Template(VERIFICATION, "en", source, is_own=True)
    return compose(template, letter_values(VERIFICATION, house, "robin@x.test", username, token))


def refusal(source: Source, kind: str = "verification") -> str:
    with pytest.raises(TemplateRefused) as error:
        check_template(KINDS[kind], "en", source)
    sentence = str(error.value)
    assert isinstance(error.value, PermanentError)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


@pytest.mark.parametrize("locale", ["en", "de"])
@pytest.mark.parametrize("name", KINDS)
def test_what_ships_passes_its_own_checks_and_is_whole(name: str, locale: str) -> None:
    assert locale in shipped_locales(name)
    check_template(KINDS[name], locale, shipped(name, locale))
    house = replace(ACME, locale=locale)
    letter = compose(Template(KINDS[name], locale, shipped(name, locale)), sample_values(KINDS[name], house))
    assert letter.html is not None
    assert "{{" not in letter.subject + letter.text + letter.html
    assert f'<html lang="{locale}">' in letter.html
    assert "prefers-color-scheme: dark" in letter.html
    assert "<script" not in letter.html
    if KINDS[name].is_secret:
        assert SECRET_SAMPLE in letter.text
        assert SECRET_SAMPLE in letter.html
        assert SECRET_SAMPLE not in letter.subject


def test_a_locale_falls_back_to_its_language_and_then_to_english() -> None:
    assert locales_for("de_at") == ["de-AT", "de", "en"]
    assert locales_for("zh-hant-tw") == ["zh-Hant-TW", "zh-Hant", "zh", "en"]
    assert locales_for("EN") == ["en"]
    for wrong in ("", "x", "de/../en", "d" * 40):
        with pytest.raises(InvalidInputError, match="language tag"):
            normal_locale(wrong)


def test_an_unknown_template_names_those_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no template named 'birthday'\. There are: verification, password_reset, welcome, system\."):
        kind_named("birthday")


@pytest.mark.parametrize(
    ("html", "what"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "loops"),
        ("{{ 'a' * 10**9 }}", "arithmetic"),
        ("{{ 10**9**9 }}", "arithmetic"),
        ("{{ ''.__class__.__mro__ }}", "attributes"),
        ("{{ link['__class__'] }}", "attributes or items"),
        ("{{ self.content() }}", "calls"),
        ("{{ lipsum(n=100000) }}", "calls"),
        ("{{ link|center(1000000000) }}", "no filter named 'center'"),
        ("{{ '%1000000000s'|format(1) }}", "no filter named 'format'"),
        ("{{ link|attr('__class__') }}", "no filter named 'attr'"),
        ("{{ link|safe }}", "no filter named 'safe'"),
        ("{% set x = link %}", "set"),
        ("{% macro m() %}{% endmacro %}", "macros"),
        ("{% include 'layout.html' %}", "include"),
        ("{% import 'layout.html' as x %}", "import"),
        ('{% extends "other.html" %}', 'only "layout.html"'),
        ("{% autoescape false %}{{ link }}{% endautoescape %}", "autoescape"),
        ("{% if link %}{{ link }}", "line 1"),
        ("{{ link", "line 1"),
        ("<p>\n\n{{ 1 +", "line 3"),
        ("{{ nickname }} {{ link }}", "no variable nickname; it may use accent_color, app_name, link,"),
        ("<p>Hello</p>", "neither link nor token"),
        ("{{ link }}" + "{% if link %}" * 200 + "{% endif %}" * 200, "nested too deeply"),
        ("{{ " + "(" * 5000 + "link", "nested too deeply"),
        ("{{ link }}" * 19_000, "larger than 1024 KiB"),
        ("{{ link }}" + "x" * 200_000, "200,000 characters"),
        ("{{ link }}\x00", "NUL"),
        ("{{ link|truncate('a') }}", "cannot be rendered"),
        ("{% block a %}{% endblock %}{% block a %}{% endblock %}", "defined twice"),
    ],
)
def test_a_template_that_cannot_be_is_refused_with_its_part_and_why(html: str, what: str) -> None:
    sentence = refusal(replace(GOOD, html=html))
    assert sentence.startswith("Template verification (en), html: ")
    assert what in sentence


def test_every_part_is_checked() -> None:
    assert refusal(replace(GOOD, subject="{{ nobody }}")).startswith("Template verification (en), subject: there is no variable nobody")
    assert refusal(replace(GOOD, text="{{ link")).startswith("Template verification (en), text: line 1")
    assert "extends" in refusal(replace(GOOD, text='{% extends "layout.html" %}'))
    assert "only the html may be empty" in refusal(replace(GOOD, text=" "))
    assert "only the html may be empty" in refusal(replace(GOOD, subject=""))
    assert "1 to 500 characters" in refusal(replace(GOOD, subject="{{ '' }}"))


def test_a_secret_may_not_stand_in_a_subject() -> None:
    for name in ("link", "token"):
        assert "secret and may not stand in a subject" in refusal(replace(GOOD, subject=f"Code {{{{ {name} }}}}"))


def test_a_template_may_use_the_blocks_of_the_layout_conditions_and_filters() -> None:
    html = (
        '{% extends "layout.html" %}{% block content %}{{ super() }}{% if username == "Robin" and not nobody is defined %}'
        '<b>{{ username|upper }}</b>{% else %}{{ "x" ~ token }}{% endif %}{{ link }}{% endblock %}'
    ).replace("nobody", "token")
    check_template(VERIFICATION, "en", replace(GOOD, html=html))
    assert read_part(html, is_html=True) is read_part(html, is_html=True)


def test_values_are_escaped_in_html_and_kept_in_text() -> None:
    letter = composed(replace(GOOD, text="{{ username }} {{ link }}", html="<p>{{ username }}</p>{{ link }}"), username=XSS)
    assert letter.html is not None
    assert "<img" not in letter.html
    assert "&lt;img" in letter.html
    assert XSS in letter.text


def test_a_line_break_in_a_value_never_reaches_a_header() -> None:
    letter = composed(GOOD, username="Robin\r\nBcc: eve@x.test\u2028X: y\x00")
    assert letter.subject == "Hi Robin Bcc: eve@x.test X: y"
    multi = composed(replace(GOOD, subject="Hi\n\n{{ username }}\t!"))
    assert multi.subject == "Hi Robin !"
    assert "\n" not in letter.subject


def test_a_token_is_encoded_in_its_link() -> None:
    letter = composed(GOOD, token="a/b?c=d&e f")
    assert "https://app.acme.test/verify-email?token=a%2Fb%3Fc%3Dd%26e%20f" in letter.text
    house = replace(ACME, verification_path="/v?lang=de")
    assert "https://app.acme.test/v?lang=de&token=t0k3n" in composed(GOOD, house=house).text


def test_a_link_that_leads_nowhere_names_the_setting() -> None:
    with pytest.raises(TemplateRefused) as error:
        composed(GOOD, house=replace(ACME, link_base_url=None))
    assert str(error.value) == (
        "Template verification (en), text: it needs the variable link, which has no value; "
        "set linkBaseUrl in PUT /api/mail/settings, or LINK_BASE_URL."
    )
    by_token = Source("Hi", "{{ token }}", "")
    assert composed(by_token, house=replace(ACME, link_base_url=None)) == Letter("Hi", "t0k3n\n", None)


def test_a_welcome_needs_no_link() -> None:
    house = replace(ACME, link_base_url=None)
    letter = compose(
        Template(KINDS["welcome"], "en", shipped("welcome", "en")), letter_values(KINDS["welcome"], house, "r@x.test", "Robin")
    )
    assert letter.html is not None
    assert "Open Acme" not in letter.html


def test_a_rendered_part_stays_below_its_cap_whatever_the_values() -> None:
    part = read_part("{{ token }}" * 100, is_html=False)
    with pytest.raises(TemplateRefused, match="larger"):
        part.render({"token": "x" * (LARGEST_OUTPUT // 50)})


def test_a_template_that_came_past_the_checks_is_refused_when_it_is_used() -> None:
    with pytest.raises(TemplateRefused, match="attributes"):
        composed(replace(GOOD, text="{{ username.__class__ }}"))
    with pytest.raises(TemplateRefused, match=r"Template verification \(en\), text: there is no variable nickname"):
        composed(replace(GOOD, text="{{ nickname }}"))


def test_a_system_mail_gets_a_frame_unless_it_is_a_document() -> None:
    values = system_values(ACME, "r@x.test", "Hi\nthere", "<h1>Hello</h1><p>You & me</p>", None)
    letter = compose(Template(KINDS["system"], "en", shipped("system", "en")), values)
    assert (letter.subject, letter.html is not None and "<h1>Hello</h1>" in letter.html) == ("Hi there", True)
    assert "You & me" in letter.text
    assert is_document("<!DOCTYPE html><html></html>")
    assert is_document("\n<!-- x -->\n<html lang='en'>")
    assert not is_document("<p>I like <html></p>")


@pytest.mark.parametrize(
    ("minutes", "locale", "words"),
    [(60, "en", "1 hour"), (1440, "de-AT", "24 Stunden"), (4320, "en", "3 days"), (45, "fr", "45 minutes"), (90, "de", "90 Minuten")],
)
def test_how_long_a_token_is_good_is_said_in_the_mails_language(minutes: int, locale: str, words: str) -> None:
    assert duration(minutes, locale) == words


def test_a_letter_becomes_a_mail_with_short_lines() -> None:
    letter = compose(Template(VERIFICATION, "de", shipped("verification", "de")), sample_values(VERIFICATION, replace(ACME, locale="de")))
    mail = OutgoingMail(
        "<1@x.test>", now(), Address("Acme", "a@x.test"), [Address("", "r@x.test")], letter.subject, text=letter.text, html=letter.html
    )
    raw = build_message(mail)
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert re.search(rb"^Subject: =\?utf-8\?", raw, re.MULTILINE)
