"""From a template and its values to the letter: subject, text and HTML, each checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mail.addresses import Address
from mail.sanitise import html_to_text
from mail.templates.catalogue import SECRET_SAMPLE, Kind, Source
from mail.templates.language import MissingVariable, Part, TemplateRefused, read_part

LARGEST = {"subject": 1_000, "text": 50_000, "html": 200_000}
"""Characters of a template's part."""
LONGEST_SUBJECT = 500
LONGEST_NAME = 200
ACCENT = "#3b57d6"
VERIFICATION_PATH, PASSWORD_RESET_PATH = "/verify-email", "/reset-password"
UNITS = {
    "en": {"day": ("day", "days"), "hour": ("hour", "hours"), "minute": ("minute", "minutes")},
    "de": {"day": ("Tag", "Tage"), "hour": ("Stunde", "Stunden"), "minute": ("Minute", "Minuten")},
}
SIZES = {"day": 1440, "hour": 60, "minute": 1}
WHY_MISSING = {"link": "set linkBaseUrl in PUT /api/mail/settings, or LINK_BASE_URL"}
_DOCUMENT = re.compile(r"\s*(<!--.*?-->\s*)*(<!doctype|<html)\b", re.IGNORECASE | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class House:
    """Whose letters they are: how the product is called and looks, where its links lead, and how long its tokens are good (minutes)."""

    app_name: str
    sender: Address | None = None
    locale: str = "en"
    accent_color: str = ACCENT
    link_base_url: str | None = None
    verification_path: str = VERIFICATION_PATH
    password_reset_path: str = PASSWORD_RESET_PATH
    verification_minutes: int = 1440
    password_reset_minutes: int = 60

    def minutes_for(self, kind: str) -> int | None:
        """How long a mail of the kind may take to go out; None: as long as it takes."""
        return {"verification": self.verification_minutes, "password_reset": self.password_reset_minutes}.get(kind)


@dataclass(frozen=True, slots=True)
class Letter:
    """What is sent. `html` is None for plain text."""

    subject: str
    text: str
    html: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """Some wording of a letter: of which kind, in which language, and whether it is the tenant's own."""

    kind: Kind
    locale: str
    source: Source
    is_own: bool = False


def check_template(kind: Kind, locale: str, source: Source) -> None:
    """Before a tenant's own template is kept. Raises TemplateRefused with one sentence; it is also rendered once, with samples."""
    template = Template(kind, locale, source, is_own=True)
    for name, largest in LARGEST.items():
        if len(getattr(source, name)) > largest:
            raise _refused(template, name, TemplateRefused(f"it may have {largest:,} characters"))
        if "\x00" in getattr(source, name):
            raise _refused(template, name, TemplateRefused("it holds a NUL character"))
    if not source.subject.strip() or not source.text.strip():
        raise TemplateRefused("A template needs a subject and a text; only the html may be empty.")
    parts = _parts(template)
    for name in ("text", "html") if kind.is_secret else ():
        if name in parts and not parts[name].names & kind.secrets:
            raise _refused(template, name, TemplateRefused("it mentions neither link nor token, so nobody could do anything with the mail"))
    compose(template, sample_values(kind, House("Acme", link_base_url="https://app.example.com", locale=locale)))


def compose(template: Template, values: Mapping[str, Any]) -> Letter:
    """Raises TemplateRefused, which names the template, the part and the variable or line; nothing of a value is repeated."""
    rendered = {}
    for name, part in _parts(template).items():
        try:
            rendered[name] = part.render(values)
        except TemplateRefused as error:
            raise _refused(template, name, error) from None
    subject = one_line(rendered["subject"])
    if not subject or len(subject) > LONGEST_SUBJECT:
        raise _refused(template, "subject", TemplateRefused(f"it must become 1 to {LONGEST_SUBJECT} characters"))
    return Letter(subject, rendered["text"].strip() + "\n", rendered.get("html"))


def letter_values(kind: Kind, house: House, to_email: str, username: str, token: str | None = None) -> dict[str, str]:
    """What the letters to a user may use. There is no `link` where nobody has said where links lead."""
    values = {**_everywhere(house, to_email), "username": one_line(username)[:LONGEST_NAME]}
    if token is not None:
        values |= {"token": token, "valid_for": duration(house.minutes_for(kind.name) or 0, house.locale)}
    if house.link_base_url:
        path = {"verification": house.verification_path, "password_reset": house.password_reset_path}.get(kind.name, "")
        query = f"{'&' if '?' in path else '?'}token={quote(token, safe='')}" if token is not None else ""
        values["link"] = house.link_base_url.rstrip("/") + path + query
    return values


def system_values(house: House, to_email: str, subject: str, html: str, text: str | None) -> dict[str, Any]:
    """What the frame of a system mail may use. The HTML is its caller's, and goes in as it is."""
    shown = text if text is not None else html_to_text(html)
    return {**_everywhere(house, to_email), "subject": one_line(subject), "content": Markup(html), "text": shown}  # noqa: S704


def is_document(html: str) -> bool:
    """Whether HTML is whole, and so needs no frame."""
    return _DOCUMENT.match(html[:5000]) is not None


def sample_values(kind: Kind, house: House, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """For a preview: of everything something, `given` first."""
    sample = {**kind.sample, **(given or {})}
    to_email = sample.get("to_email", "robin@example.com")
    if kind.name == "system":
        return system_values(house, to_email, sample["subject"], sample["content"], sample.get("text"))
    token = sample.get("token", SECRET_SAMPLE) if kind.is_secret else None
    values = letter_values(kind, house, to_email, sample["username"], token)
    return {**values, **{name: value for name, value in sample.items() if name in kind.variables}}


def duration(minutes: int, locale: str) -> str:
    """`24 hours`, `24 Stunden`: in the largest unit that needs no fraction, days from three on."""
    unit = next(name for name, size in SIZES.items() if minutes % size == 0 and (name != "day" or minutes >= 3 * size))
    count = minutes // SIZES[unit]
    one, many = UNITS.get(locale.partition("-")[0], UNITS["en"])[unit]
    return f"{count} {one if count == 1 else many}"


def one_line(text: str) -> str:
    """Without line breaks and control characters, which have no place in a subject or a name."""
    return " ".join(_CONTROL.sub(" ", text).split())


def _everywhere(house: House, to_email: str) -> dict[str, str]:
    return {"app_name": house.app_name, "accent_color": house.accent_color, "locale": house.locale, "to_email": to_email}


def _parts(template: Template) -> dict[str, Part]:
    """Each part that is not empty, checked. Raises TemplateRefused."""
    parts = {}
    for name in LARGEST:
        source: str = getattr(template.source, name)
        if name == "html" and not source.strip():
            continue
        try:
            parts[name] = read_part(source, is_html=name == "html")
            _check_names(template.kind, name, parts[name])
        except TemplateRefused as error:
            raise _refused(template, name, error) from None
    return parts


def _check_names(kind: Kind, part: str, found: Part) -> None:
    known = set(kind.variables) - (kind.secrets if part == "subject" else set())
    for name in sorted(found.names - known):
        if name in kind.secrets:
            raise TemplateRefused(f"{name} is secret and may not stand in a subject")
        raise TemplateRefused(f"there is no variable {name}; it may use {', '.join(sorted(known))}")


def _refused(template: Template, part: str, error: TemplateRefused) -> TemplateRefused:
    hint = f"; {WHY_MISSING[error.name]}" if isinstance(error, MissingVariable) and error.name in WHY_MISSING else ""
    sentence = f"Template {template.kind.name} ({template.locale}), {part}: {error}{hint}."
    refused = MissingVariable(error.name) if isinstance(error, MissingVariable) else TemplateRefused(sentence)
    refused.args = (sentence,)
    return refused
