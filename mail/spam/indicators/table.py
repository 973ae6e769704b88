"""All indicators: their stable codes, how much each says, and one sentence for people."""

from __future__ import annotations

from mail.spam.verdict import MAX_EVIDENCE, Indicator, Severity

INFO, LOW, MEDIUM, HIGH = Severity.INFO, Severity.LOW, Severity.MEDIUM, Severity.HIGH

INDICATORS: dict[str, tuple[Severity, str]] = {
    # who it says it is from
    "display_name_spoof": (MEDIUM, "The sender's name holds an address or a brand of another organisation."),
    "lookalike_domain": (HIGH, "The sender's domain looks like a known one and is not."),
    "brand_in_domain": (MEDIUM, "The sender's domain holds a brand's name and is not the brand's."),
    "punycode_domain": (LOW, "The sender's domain is written in another alphabet."),
    "mixed_script_domain": (HIGH, "A domain mixes letters of several alphabets that look alike."),
    "reply_to_mismatch": (LOW, "Answers go to another organisation than the sender's."),
    "reply_to_free_mail": (MEDIUM, "Answers to an organisation's mail go to a free mailbox."),
    "return_path_mismatch": (INFO, "Failures are reported to another organisation than the sender's."),
    "message_id_mismatch": (INFO, "The Message-ID was made by another organisation than the sender's."),
    "sender_is_recipient": (INFO, "It says that it is from the one it is sent to."),
    # where it leads
    "link_text_mismatch": (MEDIUM, "A link shows one address and leads to another organisation's."),
    "lookalike_link": (HIGH, "A link leads to a host that looks like a known one and is not."),
    "brand_in_link": (LOW, "A link's host holds a brand's name and is not the brand's."),
    "ip_link": (MEDIUM, "A link leads to a number instead of a name."),
    "userinfo_link": (HIGH, "A link hides its host behind an @."),
    "punycode_link": (LOW, "A link leads to a host in another alphabet."),
    "odd_port_link": (LOW, "A link leads to an unusual port."),
    "shortened_link": (INFO, "A link goes through a shortener, which hides where it leads."),
    "many_subdomains_link": (LOW, "A link's host has very many parts."),
    "script_link": (MEDIUM, "A link runs a script or carries a whole page in itself."),
    "free_hosting_link": (INFO, "A link leads to a page that anybody can make at a hosting service."),
    "too_many_links": (INFO, "There are more links than anybody follows."),
    # what the servers say
    "auth_spf_fail": (LOW, "The receiving server found the sending host not allowed for its domain (SPF)."),
    "auth_dkim_fail": (LOW, "The receiving server found the signature broken (DKIM)."),
    "auth_dmarc_fail": (MEDIUM, "The receiving server found that the sender's domain disowns this mail (DMARC)."),
    "dkim_invalid": (LOW, "A signature over the message does not verify."),
    "dkim_valid": (INFO, "A signature of the sender's domain verifies."),
    # what is attached
    "dangerous_attachment": (HIGH, "An attachment runs when it is opened."),
    "double_extension": (HIGH, "An attachment's name hides that it runs when it is opened."),
    "html_attachment": (MEDIUM, "A page is attached instead of being the mail."),
    "macro_document": (MEDIUM, "An attached document holds macros."),
    "encrypted_archive": (MEDIUM, "An attached archive is encrypted, so that no scanner can look inside."),
    "dangerous_in_archive": (HIGH, "An attached archive holds a file that runs when it is opened."),
    "nested_archive": (LOW, "An attached archive holds archives."),
    "unlisted_archive": (LOW, "An attached archive does not show all that it holds."),
    "archive_bomb": (HIGH, "An attached archive would grow beyond all measure."),
    "attachment_type_mismatch": (LOW, "An attachment is something else than its name says."),
    # what it says
    "hidden_text": (LOW, "The page holds text that nobody sees."),
    "zero_width_characters": (MEDIUM, "Words are broken up by invisible characters."),
    "mixed_script_words": (MEDIUM, "Words mix letters of several alphabets that look alike."),
    "form_in_mail": (LOW, "The page holds a form to fill in."),
    "password_field": (HIGH, "The page asks for a password."),
    "script_in_mail": (LOW, "The page holds a script."),
    "refresh_in_mail": (MEDIUM, "The page leads on to another by itself."),
    "image_only": (LOW, "There is hardly any text beside the pictures."),
    "obfuscated_words": (LOW, "Words are disguised with signs, digits or gaps."),
    "split_words": (LOW, "Words are torn apart by markup that nobody sees."),
    "urgency_wording": (INFO, "The text presses for time."),
    "credential_wording": (LOW, "The text asks to confirm an account or a password."),
    "credential_pressure": (MEDIUM, "The text presses for time, asks to confirm an account, and has a link for it."),
    "advance_fee_wording": (MEDIUM, "The text promises a fortune to be transferred."),
    "shouting_subject": (INFO, "The subject is in capitals."),
    # how it is made
    "missing_date": (LOW, "There is no Date."),
    "invalid_date": (LOW, "The Date cannot be read."),
    "date_in_future": (LOW, "The Date is days ahead of when the message was received."),
    "missing_message_id": (LOW, "There is no Message-ID."),
    "invalid_message_id": (INFO, "The Message-ID is not one."),
    "missing_from": (MEDIUM, "There is no sender."),
    "several_from": (MEDIUM, "There are several From headers."),
    "fake_reply": (LOW, "The subject says it is an answer, and it answers nothing."),
    "undisclosed_recipients": (INFO, "It does not say to whom it was sent."),
    "malformed_message": (LOW, "The message is not put together as a mail is."),
    "unparsable": (MEDIUM, "The message could not be read."),
}


def found(code: str, evidence: str = "") -> Indicator:
    """An indicator with its evidence made harmless: one line, no control characters, at most MAX_EVIDENCE characters."""
    severity, _ = INDICATORS[code]
    shown = evidence[: MAX_EVIDENCE * 4]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else " " for char in shown)
    return Indicator(code, severity, " ".join(shown.split())[:MAX_EVIDENCE])


def sentence(code: str) -> str:
    """What the code says, for people."""
    return INDICATORS[code][1]
