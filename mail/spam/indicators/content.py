"""What a message says and how it hides it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.spam.brands import scripts
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View

MAX_LOOKED_AT = 20_000
"""Characters of the shown text that are searched."""
_INVISIBLE = re.compile(r"(?<=[^\W\d_])[\u200b\u2060\u00ad\ufeff\u180e\u2061-\u2064]+(?=[^\W\d_])")
_WORD = re.compile(r"[^\W\d_]{4,40}")
_GAPPED = re.compile(r"\b(?:[a-zA-Z][ ._*\-/]){5,}[a-zA-Z]\b")
_DISGUISED = re.compile(r"\b[a-z]+[0@$!|1][a-z]*[0@$!|1]?[a-z]+\b", re.IGNORECASE)
_KNOWN_DISGUISED = re.compile(
    r"v[i1l!|]+[a@4]+gr[a@4]|c[i1!|]a[l1]+[i1!|]s|x[a@4]n[a@4]x|v[a@4]l[i1!|]um|r[o0]l[e3]x|m[o0]rtg[a@4]g[e3]|p[e3]n[i1!|]s|ph[a@4]rm[a@4]cy",
    re.IGNORECASE,
)
_URGENT = re.compile(
    r"\b(?:within (?:24|48|72|\d+) hours|immediate(?:ly)? (?:action|attention)|act now|urgent(?:ly)?|final (?:notice|warning|reminder)"
    r"|last (?:chance|warning)|will be (?:suspended|closed|terminated|deleted|deactivated|disabled|locked)|expires? (?:today|soon|in \d+)"
    r"|dringend|innerhalb von \d+ (?:stunden|tagen)|letzte (?:mahnung|warnung)|wird (?:gesperrt|gelöscht|deaktiviert)"
    r"|urgente?|dans les \d+ heures|sera (?:suspendu|fermé|bloqué)|dernier (?:rappel|avertissement)"
    r"|en \d+ horas|será (?:suspendida|bloqueada|cancelada|suspensa|bloqueado)|último aviso|em \d+ horas|entro \d+ ore|sarà (?:sospeso|bloccato)"
    r"|binnen \d+ uur|wordt (?:geblokkeerd|opgeschort))\b",
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"\b(?:(?:verify|confirm|validate|update|restore|reactivate|unlock) your (?:\w+ ){0,2}(?:account|identity|password|information|details|mailbox|e-?mail|payment|billing|wallet)"
    r"|unusual (?:sign-?in )?activity|your (?:account|mailbox|password|wallet) (?:has been|is|was|will be|expires)|account (?:is|has been) (?:limited|suspended|locked)"
    r"|(?:seed|recovery|secret) phrase|(?:mailbox|storage) (?:is )?(?:almost )?(?:full|quota)|keep (?:the )?(?:same|current) password|log ?in (?:to|and) (?:verify|confirm|restore)"
    r"|bestätigen sie ihr(?:e|en)? (?:konto|daten|identität|passwort|zugang)|ihr konto (?:wurde|wird|ist)|verifizieren sie"
    r"|(?:vérifi|confirm|valid)ez votre (?:compte|identité|mot de passe)|votre compte (?:a été|est|sera)"
    r"|(?:verifi|confirm|actualiz|valid)(?:que|ar|e|ice) (?:su|sua|seu|tu) (?:cuenta|identidad|contraseña|conta|senha|cadastro)|su cuenta (?:ha sido|está|será)|sua conta (?:foi|está|será)"
    r"|(?:verific|conferm|aggiorn)\w+ (?:il tuo|i tuoi|il suo) (?:account|conto|dati)|bevestig uw (?:account|gegevens))",
    re.IGNORECASE,
)
_FORTUNE = re.compile(
    r"\b(?:next of kin|beneficiary|barrister|inherit(?:ance|ed)|late (?:husband|father|client|mr)|deceased|lottery|winning (?:number|ticket|notification)"
    r"|million (?:u\.?s\.? |united states )?(?:dollars|pounds|euros?)|(?:usd|us\$|\$|€|£)\s?\d+(?:[.,]\d+)? ?(?:m|million)\b|transfer of (?:the |this )?(?:sum|fund)|foreign (?:partner|account)"
    r"|consignment|strictly confidential|diplomat\w*|atm card|compensation fund|western union|donat(?:e|ion) of)",
    re.IGNORECASE,
)


def content(view: View) -> Iterator[Indicator]:
    """Of the page, the words and their letters."""
    text = view.shown[:MAX_LOOKED_AT]
    words = f"{view.subject}\n{text}"
    if view.html:
        yield from _page(view)
    if not words.isascii():
        yield from _letters(words)
    yield from _wording(view, words)
    letters = [char for char in view.subject if char.isalpha()]
    if len(letters) >= 10 and all(char.isupper() for char in letters) and letters[0].lower() != letters[0]:
        yield found("shouting_subject", view.subject)


def _page(view: View) -> Iterator[Indicator]:
    page = view.page
    hidden = " ".join(page.hidden.split())
    if len(hidden) > 150 or (len(hidden) > 20 and len(hidden) > len(page.text)):
        yield found("hidden_text", hidden)
    if page.has_password:
        yield found("password_field")
    elif page.forms and page.inputs:
        yield found("form_in_mail", page.forms[0])
    if page.has_script:
        yield found("script_in_mail")
    if page.refreshes:
        yield found("refresh_in_mail")
    if page.images and len(page.text.split()) < 12 and len(view.text.split()) < 12:
        yield found("image_only", f"{len(page.images)} pictures")
    if page.split_words >= 5:
        yield found("split_words", f"{page.split_words} times")


def _letters(words: str) -> Iterator[Indicator]:
    invisible = _INVISIBLE.findall(words)
    soft = sum("\u00ad" in each for each in invisible)
    if len(invisible) - soft >= 3 or soft >= 30:
        yield found("zero_width_characters", f"{len(invisible)} times")
    mixed = []
    for word in _WORD.findall(words):
        if not word.isascii() and any(char.isascii() for char in word):
            alphabets = scripts(word)
            if "LATIN" in alphabets and alphabets & {"CYRILLIC", "GREEK"}:
                mixed.append(word)
                if len(mixed) >= 3:
                    break
    if len(mixed) >= 2 or (mixed and mixed[0] in words[:200]):
        yield found("mixed_script_words", " ".join(mixed))


def _wording(view: View, words: str) -> Iterator[Indicator]:
    gapped, disguised = _GAPPED.search(words), _KNOWN_DISGUISED.search(words)
    if disguised is not None and disguised.group().isalpha():
        disguised = None
    if disguised is not None or (gapped is not None and len(gapped.group()) > 12):
        yield found("obfuscated_words", (disguised or gapped or [""])[0])
    urgent, credential = _URGENT.search(words), _CREDENTIAL.search(words)
    if urgent is not None:
        yield found("urgency_wording", urgent.group())
    if credential is not None:
        yield found("credential_wording", credential.group())
    if urgent is not None and credential is not None and view.urls:
        yield found("credential_pressure", f"{urgent.group()}; {credential.group()}")
    fortunes = {match.group().lower() for match in _FORTUNE.finditer(words)}
    if len(fortunes) >= 3:
        yield found("advance_fee_wording", "; ".join(sorted(fortunes)[:4]))
