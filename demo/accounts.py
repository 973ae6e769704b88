"""Who has a mailbox on the demo servers: two tenants, four accounts, two of them with mail from the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from demo.messages import SeedMessage, acme_inbox, globex_inbox


def empty_inbox(_before: datetime) -> list[SeedMessage]:
    return []


@dataclass(frozen=True)
class DemoAccount:
    """`address` is the user name for IMAP and SMTP. `uid_validity` never changes, and the same messages keep their UIDs."""

    tenant: str
    address: str
    password: str
    uid_validity: int
    messages: Callable[[datetime], list[SeedMessage]] = empty_inbox


ACME_SUPPORT = DemoAccount("acme", "support@acme.example", "acme-garden", 41, acme_inbox)
ACME_ORDERS = DemoAccount("acme", "orders@acme.example", "acme-orders", 42)
GLOBEX_OFFICE = DemoAccount("globex", "office@globex.example", "globex-plans", 43, globex_inbox)
GLOBEX_SALES = DemoAccount("globex", "sales@globex.example", "globex-sales", 44)
ACCOUNTS = (ACME_SUPPORT, ACME_ORDERS, GLOBEX_OFFICE, GLOBEX_SALES)
WRONG_PASSWORD = "not-the-password"  # noqa: S105  (what a misconfigured client would send)
