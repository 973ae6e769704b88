"""What phishing and fraud say, in the languages they are mostly written in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.wordlists import listed

MAX_TEXT = 8_000
"""Characters of the text that are searched."""
MAX_PLACES = 20
"""Places of each word that are looked at."""
REACH = 64
"""Characters before and after a word that its phrase may take."""


def _phrases(*phrases: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(phrases)})", re.IGNORECASE)


def _words(text: str) -> frozenset[bytes]:
    return frozenset(word.encode() for word in listed(text))


_URGENT = _phrases(
    r"within (?:24|48|72|\d+) hours", "immediate(?:ly)? (?:action|attention)", "act now", "urgent(?:ly)?", "final (?:notice|warning)",
    "last (?:chance|warning|reminder)", "will be (?:suspended|closed|terminated|deleted|deactivated|disabled|locked)",
    r"expires? (?:today|soon|in \d+)",
    r"dringend", r"innerhalb von \d+ (?:stunden|tagen)", "letzte (?:mahnung|warnung)", "wird (?:gesperrt|gelöscht|deaktiviert)",
    r"urgente?\b", r"dans les \d+ heures", "sera (?:suspendu|fermé|bloqué)", "dernier (?:rappel|avertissement)",
    r"en \d+ horas", "será (?:suspendida|bloqueada|cancelada|suspensa|bloqueado)", "último aviso", r"em \d+ horas",
    r"entro \d+ ore", "sarà (?:sospeso|bloccato)", r"binnen \d+ uur", "wordt (?:geblokkeerd|opgeschort)",
)  # fmt: skip
_URGENT_WORDS = _words(
    "hours immediate immediately act urgent urgently final last suspended closed terminated deleted deactivated disabled locked "
    "expires expire dringend stunden tagen letzte gesperrt gelöscht deaktiviert urgente heures suspendu fermé bloqué dernier horas "
    "suspendida bloqueada cancelada suspensa bloqueado aviso ore sospeso bloccato uur geblokkeerd opgeschort"
)
_CREDENTIAL = _phrases(
    r"(?:verify|confirm|validate|update|restore|reactivate|unlock|secure) (?:your|my) (?:\w+ ){0,2}"
    "(?:account|identity|password|information|details|mailbox|e-?mail|payment|billing|wallet)",
    "unusual (?:sign-?in )?activity", "your (?:account|mailbox|password|wallet) (?:has been|is|was|will be|expires)",
    "account (?:is|has been) (?:limited|suspended|locked)", "(?:seed|recovery|secret) phrase", "mailbox (?:is )?(?:almost )?full",
    "(?:mailbox|storage) quota", "keep (?:the )?(?:same|current) password", "log ?in (?:to|and) (?:verify|confirm|restore)",
    "bestätigen sie ihr(?:e|en)? (?:konto|daten|identität|passwort|zugang)", "ihr konto (?:wurde|wird|ist)", "verifizieren sie",
    "(?:vérifi|confirm|valid)(?:ez|er) votre (?:compte|identité|mot de passe)", "votre compte (?:a été|est|sera)",
    "(?:verifi|confirm|actualiz|valid)(?:que|ar|e|ice) (?:su|sua|seu|tu) (?:cuenta|identidad|contraseña|conta|senha|cadastro)",
    "su cuenta (?:ha sido|está|será)", "sua conta (?:foi|está|será)",
    r"(?:verific|conferm|aggiorn)\w+ (?:il tuo|i tuoi|il suo) (?:account|conto|dati)",
    "bevestig uw (?:account|gegevens)",
)  # fmt: skip
_CREDENTIAL_WORDS = _words(
    "account identity password information details mailbox billing wallet payment unusual phrase quota konto daten identität passwort "
    "zugang verifizieren compte identité passe cuenta identidad contraseña conta senha cadastro conto dati gegevens"
)
_FORTUNE = _phrases(
    "next of kin", "beneficiary", "barrister", "inherit(?:ance|ed)", "late (?:husband|father|client|mr)", "deceased", "lottery",
    "winning (?:number|ticket|notification)", r"million (?:u\.?s\.? |united states )?(?:dollars|pounds|euros?)",
    r"(?:usd|gbp|eur) ?\d+(?:[.,]\d+)? ?million", "transfer of (?:the |this )?(?:sum|fund)", "foreign (?:partner|account)", "consignment",
    "strictly confidential", "diplomat", "atm card", "compensation fund", "western union", "donat(?:e|ing|ion) of",
)  # fmt: skip
_FORTUNE_WORDS = _words(
    "kin beneficiary barrister inheritance inherited deceased lottery winning million sum fund foreign consignment confidential diplomat "
    "diplomatic atm compensation western donation husband"
)


def wording(text: str, words: frozenset[bytes], has_links: bool) -> Iterator[Indicator]:
    """`words` are those of the text: phrases are looked for around the few of them that are part of one, and nowhere else."""
    text = text[:MAX_TEXT].lower()
    urgent = next(_around(text, words & _URGENT_WORDS, _URGENT), "")
    credential = next(_around(text, words & _CREDENTIAL_WORDS, _CREDENTIAL), "")
    if urgent:
        yield found("urgency_wording", urgent)
    if credential:
        yield found("credential_wording", credential)
    if urgent and credential and has_links:
        yield found("credential_pressure", f"{urgent}; {credential}")
    met = words & _FORTUNE_WORDS
    if len(met) >= 2:
        fortunes = set(_around(text, met, _FORTUNE))
        if len(fortunes) >= 3:
            yield found("advance_fee_wording", "; ".join(sorted(fortunes)[:4]))


def _around(text: str, met: frozenset[bytes], phrases: re.Pattern[str]) -> Iterator[str]:
    for word in sorted(met):
        each = word.decode("utf-8", "replace")
        place = text.find(each)
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            match = phrases.search(text, max(0, place - REACH), place + REACH)
            if match is not None:
                yield match.group()
            place = text.find(each, place + REACH // 2)
