"""What letters there are: which variables a template may use, which of them are secret, and what stands for them in a preview."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.errors import InvalidInputError, NotFoundError

FILES = Path(__file__).parent / "files"
FALLBACK = "en"
LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")
EVERYWHERE = {
    "app_name": "what the product is called",
    "accent_color": "the colour of buttons, like #3b57d6",
    "locale": "the language of this mail",
    "to_email": "the recipient's address",
}
SECRET_SAMPLE = "k7Qm2xYt9VbN4sRd"  # noqa: S105  (opens nothing)


@dataclass(frozen=True, slots=True)
class Source:
    """The three parts of a template. Without `html` the mail is plain text."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A letter. `own` are its variables beside those of every letter, `secrets` those of them that let somebody in."""

    name: str
    about: str
    own: Mapping[str, str]
    sample: Mapping[str, str]
    secrets: frozenset[str] = frozenset()

    @property
    def variables(self) -> dict[str, str]:
        """All that its templates may use, with what they are."""
        return {**self.own, **EVERYWHERE}

    @property
    def is_secret(self) -> bool:
        """Whether a mail made of it lets somebody in."""
        return bool(self.secrets)


PERSON = {"username": "who it is for"}
WITH_LINK = {
    **PERSON,
    "link": "where the button leads, the token in it",
    "token": "the token alone",
    "valid_for": "how long the token is good, like 24 hours",
}
TOKENS = frozenset({"link", "token"})
KINDS = {
    kind.name: kind
    for kind in (
        Kind("verification", "proves that an address is its user's", WITH_LINK, {"username": "Robin"}, TOKENS),
        Kind("password_reset", "lets somebody choose a new password", WITH_LINK, {"username": "Robin"}, TOKENS),
        Kind("welcome", "greets a new user", {**PERSON, "link": "the product's address"}, {"username": "Robin"}),
        Kind(
            "system",
            "the frame around whatever send_system_email is given",
            {"subject": "the subject given", "content": "the HTML given", "text": "the text given, or that of the HTML"},
            {
                "subject": "Maintenance on Sunday",
                "content": "<h1>Maintenance on Sunday</h1><p>We will be away from 02:00 to 02:15 UTC.</p>",
                "text": "Maintenance on Sunday\n\nWe will be away from 02:00 to 02:15 UTC.",
            },
        ),
    )
}


def kind_named(name: str) -> Kind:
    """Raises NotFoundError naming those there are."""
    if name not in KINDS:
        raise NotFoundError(f"There is no template named {name[:40]!r}. There are: {', '.join(KINDS)}.")
    return KINDS[name]


def normal_locale(text: str) -> str:
    """`de_at` becomes `de-AT` (RFC 5646 2.1.1). Raises InvalidInputError."""
    given = text.strip().replace("_", "-")
    if not LOCALE.fullmatch(given):
        raise InvalidInputError("A locale is a language tag like de or de-AT.")
    language, *rest = given.split("-")
    return "-".join([language.lower(), *(part.upper() if len(part) == 2 else part.capitalize() for part in rest)])


def locales_for(locale: str) -> list[str]:
    """Where to look, the best first: `de-AT`, `de`, `en`."""
    parts = normal_locale(locale).split("-")
    return list(dict.fromkeys([*("-".join(parts[:count]) for count in range(len(parts), 0, -1)), FALLBACK]))


@cache
def shipped_locales(name: str) -> tuple[str, ...]:
    """The languages that Mailroom itself has the letter in."""
    return tuple(sorted(path.parent.name for path in FILES.glob(f"*/{kind_named(name).name}.txt")))


@cache
def shipped(name: str, locale: str) -> Source:
    """The letter as it ships: the first line of its text is the subject."""
    head, _, text = (FILES / locale / f"{name}.txt").read_text().partition("\n")
    return Source(head.removeprefix("Subject: "), text.lstrip("\n"), (FILES / locale / f"{name}.html").read_text())
