"""The DNS records of DKIM keys (RFC 6376 3.6.2), asked for within bounds and remembered: no mail waits long for a name server.

What cannot be had is None, whatever the reason: it says nothing about the message.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from core.hosts import parse_name_server
from mail.spam.engines.engine import Breaker

LOOKUP_SECONDS = 0.5
"""For one record, all tries together."""
MAX_RECORDS = 4_000
MAX_BYTES = 4_096
"""Of a record; a longer one is none."""
SHORTEST, LONGEST = 60.0, 3_600.0
"""Seconds that a record is kept: what it says of itself, between these."""
NO_RECORD_SECONDS, FAILED_SECONDS = 300.0, 30.0
"""That a name without a record, and a question without an answer, are not asked again."""
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62}\.)+[a-z0-9-]{1,63}")

Ask = Callable[[str], tuple[bytes | None, float]]
"""The record of a name, or None where there is none, and for how many seconds that holds. Raises OSError where nobody answers."""


class KeyRecords:
    """Call it with a name. For several threads at a time; never raises."""

    def __init__(self, ask: Ask, breaker: Breaker | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._breaker = breaker or Breaker()
        self._known: OrderedDict[str, tuple[float, bytes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> bytes | None:
        """The TXT record of a name without its final dot, or None."""
        name = name.lower()
        with self._lock:
            until, record = self._known.get(name, (0.0, None))
        if self._clock() < until:
            return record
        if _NAME.fullmatch(name) is None or not self._breaker.may_ask():
            return None
        record, seconds = self._asked(name)
        with self._lock:
            self._known[name] = (self._clock() + seconds, record)
            self._known.move_to_end(name)
            if len(self._known) > MAX_RECORDS:
                self._known.popitem(last=False)
        return record

    def _asked(self, name: str) -> tuple[bytes | None, float]:
        try:
            record, seconds = self._ask(name)
        except Exception:  # a stranger chose the name and who answers for it
            self._breaker.failed()
            return None, FAILED_SECONDS
        self._breaker.succeeded()
        if record is None or len(record) > MAX_BYTES:
            return None, NO_RECORD_SECONDS
        return record, min(max(seconds, SHORTEST), LONGEST)


@lru_cache(maxsize=4)
def key_records(server: str) -> KeyRecords | None:
    """Those that a name server knows: `system` for the machine's own, or an address with or without a port (`192.0.2.53:5353`,
    `[2001:db8::53]`). The same for the whole process; None where the machine has none."""
    ask = _resolver(server)
    return KeyRecords(ask) if ask is not None else None


def _resolver(server: str) -> Ask | None:
    import dns.exception  # a library that only this needs
    import dns.name
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver(configure=server == "system")
        if server != "system":
            address, resolver.port = parse_name_server(server)
            resolver.nameservers = [address]
    except (dns.resolver.NoResolverConfiguration, ValueError):
        return None
    resolver.lifetime, resolver.timeout = LOOKUP_SECONDS, LOOKUP_SECONDS / 2

    def ask(name: str) -> tuple[bytes | None, float]:
        try:
            answer = resolver.resolve(dns.name.from_text(name), "TXT", search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None, NO_RECORD_SECONDS
        except dns.exception.DNSException as error:
            raise OSError("The name server did not answer.") from error
        records = [b"".join(each.strings) for each in answer]
        return next((each for each in records if each.startswith(b"v=DKIM1")), records[0]), float(answer.rrset.ttl if answer.rrset else 0)

    return ask
