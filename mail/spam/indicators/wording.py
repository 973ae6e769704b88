"""What phishing and fraud say, in the languages they are mostly written in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.wordlists import listed

MAX_TEXT = 8_000
"""Characters of the text that are searched."""


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
    """`words` are those of the text: most mail has none that matter, and is not searched for phrases."""
    text = text[:MAX_TEXT]
    urgent = _URGENT.search(text) if words & _URGENT_WORDS else None
    credential = _CREDENTIAL.search(text) if words & _CREDENTIAL_WORDS else None
    if urgent is not None:
        yield found("urgency_wording", urgent.group())
    if credential is not None:
        yield found("credential_wording", credential.group())
    if urgent is not None and credential is not None and has_links:
        yield found("credential_pressure", f"{urgent.group()}; {credential.group()}")
    if len(words & _FORTUNE_WORDS) >= 2:
        fortunes = {match.group().lower() for match in _FORTUNE.finditer(text)}
        if len(fortunes) >= 3:
            yield found("advance_fee_wording", "; ".join(sorted(fortunes)[:4]))
