"""Names that phishing borrows, whose they are, and which other names look like them (Unicode TS 39, a small table of its own)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from mail.spam.wordlists import listed

BRANDS: Mapping[str, frozenset[str]] = {
    word: frozenset(domains.split())
    for word, domains in {
        "paypal": "paypal.com paypal.me paypalobjects.com paypal-communication.com paypal.de paypal.co.uk paypal.fr",
        "microsoft": "microsoft.com microsoftonline.com office.com office365.com outlook.com live.com windows.com sharepoint.com azure.com",
        "outlook": "outlook.com microsoft.com office.com live.com",
        "office365": "office365.com office.com microsoft.com",
        "google": "google.com gmail.com googlemail.com youtube.com google.de google.co.uk google.fr googleusercontent.com withgoogle.com",
        "apple": "apple.com icloud.com me.com mac.com",
        "icloud": "icloud.com apple.com",
        "amazon": "amazon.com amazon.de amazon.co.uk amazon.fr amazon.it amazon.es amazon.co.jp amazon.in amazonaws.com amazonses.com",
        "facebook": "facebook.com facebookmail.com fb.com meta.com",
        "instagram": "instagram.com facebook.com facebookmail.com",
        "whatsapp": "whatsapp.com facebookmail.com",
        "netflix": "netflix.com",
        "linkedin": "linkedin.com",
        "dropbox": "dropbox.com dropboxmail.com",
        "docusign": "docusign.com docusign.net",
        "adobe": "adobe.com adobesign.com",
        "ebay": "ebay.com ebay.de ebay.co.uk ebay.fr",
        "dhl": "dhl.com dhl.de dpdhl.com deutschepost.de",
        "fedex": "fedex.com",
        "usps": "usps.com",
        "coinbase": "coinbase.com",
        "binance": "binance.com",
        "metamask": "metamask.io",
        "chase": "chase.com jpmorgan.com",
        "citibank": "citi.com citibank.com",
        "wells fargo": "wellsfargo.com",
        "wellsfargo": "wellsfargo.com",
        "bank of america": "bankofamerica.com bofa.com",
        "bankofamerica": "bankofamerica.com bofa.com",
        "american express": "americanexpress.com aexp.com",
        "hsbc": "hsbc.com hsbc.co.uk",
        "barclays": "barclays.co.uk barclays.com",
        "santander": "santander.com santander.co.uk santander.es",
        "sparkasse": "sparkasse.de",
        "commerzbank": "commerzbank.de commerzbank.com",
        "github": "github.com githubusercontent.com github.io",
        "telekom": "telekom.de telekom.com t-online.de",
        "mcafee": "mcafee.com",
        "norton": "norton.com nortonlifelock.com",
        "walmart": "walmart.com",
        "spotify": "spotify.com",
        "booking.com": "booking.com",
        "steam": "steampowered.com steamcommunity.com",
        "bradesco": "bradesco.com.br",
        "itau": "itau.com.br",
        "mercado livre": "mercadolivre.com.br mercadopago.com.br",
        "correios": "correios.com.br",
    }.items()
}
"""Brand words in lower case and the registrable domains that are really theirs."""

FREE_MAIL = listed(
    """
    gmail.com googlemail.com hotmail.com outlook.com live.com msn.com yahoo.com yahoo.co.uk yahoo.fr ymail.com aol.com gmx.de gmx.net
    gmx.com web.de mail.ru yandex.ru yandex.com protonmail.com proton.me icloud.com me.com zoho.com mail.com qq.com 163.com 126.com
    libero.it laposte.net orange.fr free.fr t-online.de rediffmail.com tutanota.com hotmail.co.uk hotmail.fr outlook.fr"""
)

_LIKE = str.maketrans(
    {
        # Cyrillic, Greek and others beside the Latin letter that they are taken for
        **dict(zip("аеорсухіјѕԁһӏѵԝɡьвнкмтгпиА", "aeopcyxijsdhlvwgbbhkmtrnua", strict=True)),
        **dict(zip("αονρτυικχεηωγβ", "aovptuikxenwyb", strict=True)),
        **dict(zip("ıłøđħŧɑ", "llodhta", strict=True)),
        **dict(zip("013458", "olesab", strict=False)),
        "i": "l", "|": "l", "!": "l", "$": "s", "@": "a",
    }
)  # fmt: skip


@lru_cache(maxsize=20_000)
def skeleton(label: str) -> str:
    """What a name looks like: one spelling for all that are taken for each other."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", label.lower()) if not unicodedata.combining(char))
    return plain.translate(_LIKE).replace("rn", "m").replace("vv", "w").replace("cl", "d")


def unicode_name(host: str) -> str:
    """A host name with its `xn--` labels decoded (RFC 3492); those that cannot be stay as they are."""
    if "xn--" not in host:
        return host
    labels = []
    for label in host.split("."):
        try:
            labels.append(label[4:].encode("ascii").decode("punycode") if label.startswith("xn--") else label)
        except (UnicodeError, ValueError):
            labels.append(label)
    return ".".join(labels)


def scripts(text: str) -> set[str]:
    """The alphabets of the letters among Latin, Cyrillic, Greek and the rest."""
    found = set()
    for char in text:
        if char.isalpha():
            name = "LATIN" if char.isascii() else unicodedata.name(char, "OTHER").partition(" ")[0]
            found.add(name)
    return found


def is_near(one: str, other: str) -> bool:
    """Whether one letter more, less, other or two swapped make one word of the other."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    rest, rest_other = one[start:], other[start:]
    if len(one) == len(other):
        return rest[1:] == rest_other[1:] or (rest[:2] == rest_other[:2][::-1] and rest[2:] == rest_other[2:])
    longer, shorter = (rest, rest_other) if len(rest) > len(rest_other) else (rest_other, rest)
    return longer[1:] == shorter


class Names:
    """The brands a caller knows of, ready to be compared with."""

    def __init__(self, more: Mapping[str, frozenset[str]], own_domains: frozenset[str]) -> None:
        self.brands = {**BRANDS, **{word.lower(): domains for word, domains in more.items()}}
        self.theirs = frozenset(domain.lower() for domains in self.brands.values() for domain in domains) | {
            each.lower() for each in own_domains
        }
        self.own = frozenset(each.lower() for each in own_domains)
        labels = {domain.partition(".")[0]: domain for domain in sorted(self.theirs)}
        labels.update({domain.partition(".")[0]: domain for domain in sorted(self.own)})
        self.labels = {label: domain for label, domain in labels.items() if len(label) >= 4}
        self.long = [label for label in self.labels if len(label) >= 7]
        self.skeletons = {skeleton(label): label for label in self.labels}
        self.shown = [(f" {skeleton(word)} ", word, domains) for word, domains in self.brands.items()]
        self.words = frozenset(word for word in self.brands if word.isalpha() and len(word) >= 5)

    @lru_cache(maxsize=20_000)  # noqa: B019 - there are two of these in a process, and they live as long
    def lookalike(self, organisation: str) -> str:
        """The known domain that this one is taken for, or nothing."""
        if organisation in self.theirs or "." not in organisation:
            return ""
        label = unicode_name(organisation).partition(".")[0]
        if label in self.labels:  # the same name under another suffix: many brands have that themselves
            return ""
        alike = self.skeletons.get(skeleton(label))
        if alike is not None:
            return self.labels[alike]
        if len(label) >= 7:
            near = next((known for known in self.long if -2 < len(known) - len(label) < 2 and is_near(label, known)), None)
            if near is not None:
                return self.labels[near]
        return ""

    @lru_cache(maxsize=20_000)  # noqa: B019
    def borrowed(self, host: str, organisation: str) -> str:
        """The brand whose word is a part of this host, which is not the brand's; or nothing."""
        if organisation in self.theirs:
            return ""
        for label in host.replace("-", ".").split("."):
            if label in self.words and organisation.partition(".")[0] != label:
                return label
        return ""


@lru_cache(maxsize=256)
def names_of(more: tuple[tuple[str, frozenset[str]], ...], own_domains: frozenset[str]) -> Names:
    """One for each set of brands and domains."""
    return Names(dict(more), own_domains)
