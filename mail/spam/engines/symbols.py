"""The engines' symbols as our indicators. What is not in the table is kept as evidence under `engine_symbol`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mail.spam.verdict import MAX_EVIDENCE, EngineScore, Indicator, Severity

LOW, MEDIUM, HIGH = Severity.LOW, Severity.MEDIUM, Severity.HIGH
Finding = tuple[str, Severity]

RSPAMD: dict[str, Finding] = {
    "ABUSE_SURBL": ("link_on_blocklist", HIGH),
    "DBL_PHISH": ("link_on_blocklist", HIGH),
    "DBL_SPAM": ("link_on_blocklist", HIGH),
    "DMARC_POLICY_QUARANTINE": ("auth_dmarc_fail", HIGH),
    "DMARC_POLICY_REJECT": ("auth_dmarc_fail", HIGH),
    "DMARC_POLICY_SOFTFAIL": ("auth_dmarc_fail", LOW),
    "ENCRYPTED_ARCHIVE": ("encrypted_archive", MEDIUM),
    "MIME_ENCRYPTED_ARCHIVE": ("encrypted_archive", MEDIUM),
    "FAKE_REPLY": ("fake_reply", LOW),
    "FORGED_SENDER": ("return_path_mismatch", LOW),
    "FROM_NAME_HAS_TITLE": ("suspicious_name", LOW),
    "FROM_NEQ_DISPLAY_NAME": ("display_name_spoof", MEDIUM),
    "SPOOF_DISPLAY_NAME": ("display_name_spoof", HIGH),
    "HACKED_WP_PHISHING": ("phishing_link", HIGH),
    "HTTP_TO_IP": ("ip_link", MEDIUM),
    "HTTP_TO_HTTPS": ("link_text_mismatch", LOW),
    "MIME_ARCHIVE_IN_ARCHIVE": ("nested_archive", MEDIUM),
    "MIME_BAD_EXTENSION": ("dangerous_attachment", HIGH),
    "MIME_DOUBLE_BAD_EXTENSION": ("double_extension", HIGH),
    "MISSING_DATE": ("missing_date", LOW),
    "MISSING_MID": ("missing_message_id", LOW),
    "MISSING_FROM": ("missing_from", MEDIUM),
    "MISSING_SUBJECT": ("missing_subject", LOW),
    "MULTIPLE_FROM": ("several_from", MEDIUM),
    "BROKEN_HEADERS": ("malformed_message", MEDIUM),
    "DATE_IN_FUTURE": ("date_in_future", LOW),
    "OMOGRAPH_URL": ("lookalike_link", HIGH),
    "PHISHED_OPENPHISH": ("phishing_link", HIGH),
    "PHISHED_PHISHTANK": ("phishing_link", HIGH),
    "PHISHING": ("link_text_mismatch", MEDIUM),
    "R_DKIM_REJECT": ("dkim_invalid", MEDIUM),
    "R_IMG_NO_SIZE": ("image_without_size", LOW),
    "R_PARTS_DIFFER": ("parts_differ", LOW),
    "R_SPF_FAIL": ("auth_spf_fail", MEDIUM),
    "R_SPF_SOFTFAIL": ("auth_spf_fail", LOW),
    "R_SUSPICIOUS_IMAGES": ("image_only", MEDIUM),
    "R_SUSPICIOUS_URL": ("suspicious_link", MEDIUM),
    "R_WHITE_ON_WHITE": ("hidden_text", MEDIUM),
    "MANY_INVISIBLE_PARTS": ("hidden_text", MEDIUM),
    "ZERO_FONT": ("hidden_text", MEDIUM),
    "ZERO_WIDTH_SPACE_URL": ("zero_width_characters", MEDIUM),
    "REPLYTO_DOM_NEQ_FROM_DOM": ("reply_to_mismatch", LOW),
    "SPOOF_REPLYTO": ("reply_to_mismatch", MEDIUM),
    "SUBJ_ALL_CAPS": ("shouting_subject", LOW),
    "URL_IN_SUBJECT": ("link_in_subject", LOW),
    "URL_REDIRECTOR_NESTED": ("redirecting_link", MEDIUM),
    "URI_HIDDEN_PATH": ("suspicious_link", LOW),
    "BAYES_SPAM": ("engine_bayes_spam", MEDIUM),
    "FUZZY_DENIED": ("known_spam", HIGH),
}
SPAMASSASSIN: dict[str, Finding] = {
    "BAYES_95": ("engine_bayes_spam", MEDIUM),
    "BAYES_99": ("engine_bayes_spam", MEDIUM),
    "BAYES_999": ("engine_bayes_spam", MEDIUM),
    "DKIM_INVALID": ("dkim_invalid", LOW),
    "SPF_FAIL": ("auth_spf_fail", MEDIUM),
    "SPF_SOFTFAIL": ("auth_spf_fail", LOW),
    "FREEMAIL_FORGED_REPLYTO": ("reply_to_mismatch", MEDIUM),
    "FROM_NO_USER": ("missing_from", LOW),
    "HTML_IMAGE_ONLY_04": ("image_only", MEDIUM),
    "HTML_IMAGE_ONLY_08": ("image_only", MEDIUM),
    "HTML_IMAGE_ONLY_12": ("image_only", LOW),
    "HTML_IMAGE_ONLY_16": ("image_only", LOW),
    "HTML_IMAGE_ONLY_20": ("image_only", LOW),
    "HTML_IMAGE_ONLY_24": ("image_only", LOW),
    "HTML_FONT_LOW_CONTRAST": ("hidden_text", LOW),
    "HTML_FONT_SIZE_HUGE": ("shouting_text", LOW),
    "HTML_OBFUSCATE_10_20": ("hidden_text", MEDIUM),
    "HTML_OBFUSCATE_20_30": ("hidden_text", MEDIUM),
    "MIME_BASE64_TEXT": ("base64_text", LOW),
    "MIME_HTML_ONLY": ("html_only", Severity.INFO),
    "MISSING_DATE": ("missing_date", LOW),
    "MISSING_FROM": ("missing_from", MEDIUM),
    "MISSING_MID": ("missing_message_id", LOW),
    "MISSING_SUBJECT": ("missing_subject", LOW),
    "MPART_ALT_DIFF": ("parts_differ", LOW),
    "NORMAL_HTTP_TO_IP": ("ip_link", MEDIUM),
    "NUMERIC_HTTP_ADDR": ("ip_link", MEDIUM),
    "HTTP_ESCAPED_HOST": ("suspicious_link", MEDIUM),
    "HTTP_EXCESSIVE_ESCAPES": ("suspicious_link", LOW),
    "HTTPS_HTTP_MISMATCH": ("link_text_mismatch", MEDIUM),
    "SPOOF_COM2OTH": ("lookalike_link", MEDIUM),
    "SPOOF_COM2COM": ("lookalike_link", MEDIUM),
    "SUBJ_ALL_CAPS": ("shouting_subject", LOW),
    "UNPARSEABLE_RELAY": ("malformed_message", Severity.INFO),
    "URIBL_BLACK": ("link_on_blocklist", HIGH),
    "URIBL_DBL_PHISH": ("link_on_blocklist", HIGH),
    "URIBL_DBL_SPAM": ("link_on_blocklist", HIGH),
    "URIBL_PH_SURBL": ("link_on_blocklist", HIGH),
    "URG_BIZ": ("urgency_wording", LOW),
    "DATE_IN_FUTURE_03_06": ("date_in_future", LOW),
    "DATE_IN_FUTURE_06_12": ("date_in_future", LOW),
    "DATE_IN_FUTURE_12_24": ("date_in_future", LOW),
    "DATE_IN_FUTURE_24_48": ("date_in_future", LOW),
    "DATE_IN_FUTURE_96_Q": ("date_in_future", MEDIUM),
}
TABLES = {"rspamd": RSPAMD, "spamassassin": SPAMASSASSIN}


def indicators_of(said: EngineScore) -> Iterator[Indicator]:
    """One indicator for each of our codes that the engine's symbols name, and one for all the others together."""
    table = TABLES.get(said.engine, {})
    found: dict[str, list[str]] = {}
    severities: dict[str, Severity] = {}
    unknown = []
    for symbol in said.symbols:
        code, severity = table.get(symbol, ("engine_symbol", Severity.INFO))
        if code == "engine_symbol":
            unknown.append(symbol)
        else:
            found.setdefault(code, []).append(symbol)
            severities[code] = max(severities.get(code, severity), severity, key=list(Severity).index)
    for code, symbols in found.items():
        yield Indicator(code, severities[code], _evidence(said.engine, symbols))
    if unknown:
        yield Indicator("engine_symbol", Severity.INFO, _evidence(said.engine, unknown))


def _evidence(engine: str, symbols: Sequence[str]) -> str:
    """Whole names, as many as fit."""
    text = f"{engine}: "
    for place, symbol in enumerate(symbols):
        more = (", " if place else "") + "".join(character for character in symbol[:80] if character.isascii() and character.isprintable())
        if len(text) + len(more) > MAX_EVIDENCE:
            break
        text += more
    return text
