"""E-mail addresses: what people typed into one normal form, and each person once over To, Cc and Bcc.

No sentence raised here repeats the address; it names the field and the position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import getaddresses

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from core.errors import InvalidInputError

# The library's documented switch. Private networks and test set-ups do use these; whether one exists is the mail server's to say.
SPECIAL_USE_DOMAIN_NAMES[:] = [name for name in SPECIAL_USE_DOMAIN_NAMES if name not in {"test", "local", "localhost"}]

_LONGEST = 1000  # with a display name; the validator itself caps the address at 254 (RFC 5321 4.5.3.1)


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox (RFC 5322 3.4): the display name, decoded and perhaps empty, and `local@domain`."""

    name: str
    addr: str


@dataclass(frozen=True, slots=True)
class Recipients:
    """To, Cc and Bcc, normal and disjoint; `all` is the envelope in that order."""

    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]

    @property
    def all(self) -> list[str]:
        """Every address once."""
        return [address.addr for address in (*self.to, *self.cc, *self.bcc)]


def normalise_address(text: str, *, field: str = "address") -> str:
    """`local@domain` with the domain in lower-case ASCII (IDNA); the local part keeps its case and may be non-ASCII (RFC 6531).

    Nothing is looked up. Raises InvalidInputError naming `field`.
    """
    try:
        valid = validate_email(text.strip(), check_deliverability=False, globally_deliverable=False)
    except (EmailNotValidError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"{field} is not a valid e-mail address.") from error
    if "." not in valid.ascii_domain and valid.ascii_domain != "localhost":
        raise InvalidInputError(f"{field} is not a valid e-mail address: the domain has no dot.")
    return f"{valid.local_part}@{valid.ascii_domain.lower()}"


def parse_address(text: str, *, field: str = "address") -> Address:
    """One address as typed, with or without a display name: `Jo <jo@x.org>`. Raises InvalidInputError naming `field`."""
    check_header_text(text, field=field)
    if len(text) > _LONGEST:
        raise InvalidInputError(f"{field} is too long for an e-mail address.")
    found = getaddresses([text])
    if len(found) > 1:
        raise InvalidInputError(f"{field} holds more than one e-mail address; give each a place of its own, and quote a name with a comma.")
    name, addr = found[0] if found else ("", "")
    if not addr or addr not in text:  # what it does not understand is dropped; a typo must not become another address
        raise InvalidInputError(f"{field} is not a valid e-mail address.")
    return Address(name.strip(), normalise_address(addr, field=field))


def check_header_text(text: str, *, field: str) -> None:
    """Raises InvalidInputError when the text could break out of its header (a line break) or hides something (control characters)."""
    if any(character < " " or character in "\x7f\x85\u2028\u2029" for character in text):
        raise InvalidInputError(f"{field} may not contain line breaks or control characters.")


def domain_of(address: str) -> str:
    """What stands after the last `@`, in lower case; empty without one."""
    return address.rpartition("@")[2].lower() if "@" in address else ""


def is_same_person(one: str, other: str) -> bool:
    """Whether two addresses are the same for people. Local parts are case-sensitive by the book and nowhere in practice."""
    return one.casefold() == other.casefold()


def unique_recipients(to: Iterable[str], cc: Iterable[str] = (), bcc: Iterable[str] = ()) -> Recipients:
    """Parses all three lists; who stands in several, in whatever case, stays in the first.

    Raises InvalidInputError naming field and position (`cc[0]`).
    """
    seen: set[str] = set()

    def fresh(field: str, texts: Iterable[str]) -> tuple[Address, ...]:
        parsed = [parse_address(text, field=f"{field}[{index}]") for index, text in enumerate(texts)]
        return tuple(each for each in parsed if not (each.addr.lower() in seen or seen.add(each.addr.lower())))  # type: ignore[func-returns-value]

    return Recipients(fresh("to", to), fresh("cc", cc), fresh("bcc", bcc))
