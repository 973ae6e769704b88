"""How the record reads in plain words: states, reasons, times, durations, and values with what is private left out."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from core.clock import now
from core.logging import SECRET_NAMES, safe_text
from runs.control import revoke_requested
from runs.current import MASK
from storage.event_types import EVENTS
from storage.models import TaskAttempt, TaskRun
from storage.states import Ending, OutboundStatus, State, WaitingFor

STATE_WORDS = {
    State.PENDING: "Waiting",
    State.STARTED: "Running",
    State.RETRY: "Retrying",
    State.SUCCESS: "Succeeded",
    State.FAILURE: "Failed",
    State.REVOKED: "Revoked",
}
REASONS = {
    "expired": "It was not started in time and has expired.",
    "revoked": "Somebody revoked it.",
    "predecessor_failed": "The run before it did not succeed.",
    "crashed": "Its worker process was lost while it ran.",
    "attempts_exhausted": "Every attempt failed.",
    "permanent": "Trying again cannot help.",
    "invalid_input": "What it was given is wrong; trying again cannot help.",
    "not_found": "What it works on does not exist any more.",
    "authentication_refused": "The account's credentials have to be changed first.",
    "certificate_refused": "The server's certificate has to be mended first, or the account's server changed.",
    "encryption_required": "The account's security setting does not fit its server.",
    "recipient_rejected": "The receiving server will not take this mail.",
    "uncertain": "The mail may have been delivered, so it is not sent again by itself.",
}
MAIL_WORDS = {
    OutboundStatus.PENDING: ("Waiting", "PENDING"),
    OutboundStatus.SENDING: ("Sending", "STARTED"),
    OutboundStatus.SENT: ("Sent", "SUCCESS"),
    OutboundStatus.FAILED: ("Failed", "FAILURE"),
    OutboundStatus.UNCERTAIN: ("Uncertain", "RETRY"),
    OutboundStatus.CANCELLED: ("Cancelled", "REVOKED"),
}
"""Status of a mail to the word people use and the state of a run that looks like it."""
DELIVERY_WORDS = {
    "pending": ("Waiting", State.PENDING),
    "delivered": ("Delivered", State.SUCCESS),
    "failed": ("Failed", State.FAILURE),
    "cancelled": ("Cancelled", State.REVOKED),
}
CATCH_UP = {"skip": "are let go", "once": "one run for all", "all": "a run for each"}
OVERLAP = {"skip": "not while its run goes on", "queue": "waits for its run to end"}
COMPONENTS = {
    "database": "Database",
    "rabbitmq": "RabbitMQ",
    "redis": "Redis",
    "worker": "Workers",
    "scheduler": "Scheduler",
    "migrations": "Schema",
}
LONGEST_VALUE = 120
MOST_ITEMS = 20
LONGEST_NAME = 16
Value = str | int | float | bool | None | list[Any] | dict[str, Any]


def state_word(state: str) -> str:
    """The word people use for a state."""
    return STATE_WORDS.get(State(state), state)


def mail_word(status: str) -> tuple[str, str]:
    """The word for a mail's status, and which state's sign it gets."""
    return MAIL_WORDS.get(OutboundStatus(status), (status, "PENDING"))


def delivery_word(status: str, attempts: int) -> tuple[str, str]:
    """The word for a webhook's delivery, and which state's sign it gets."""
    if status == "pending" and attempts:
        return "Retrying", State.RETRY
    return DELIVERY_WORDS.get(status, (status, State.PENDING))


def endpoint(url: str, *, in_full: bool) -> str:
    """Where to, with the beginning of the path only: a login, a query and what ends a path may be secrets. Not in full: the host."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    first, _, rest = parts.path.strip("/").partition("/")
    if not in_full or not first:
        return host
    return f"{host}/…" if len(first) > LONGEST_NAME else f"{host}/{first}" + ("/…" if rest else "")


def told_of(events: list[str]) -> str:
    """Which events a webhook wants, in short."""
    if len(events) == len(EVENTS):
        return "everything"
    return ", ".join(events[:3]) + (f" and {len(events) - 3} more" if len(events) > 3 else "")


def addressees(text: str, *, in_full: bool) -> str:
    """To whom; operators see the domains only."""
    return text if in_full else re.sub(r"[^@,\s]+@", "‹hidden›@", text)


def component_name(name: str) -> str:
    """What people call a component: `smtp:mail.example.com:587` is `SMTP mail.example.com:587`."""
    protocol, _, where = name.partition(":")
    return COMPONENTS.get(name) or f"{protocol.upper()} {where}".strip()


def component_facts(facts: dict[str, Any]) -> str:
    """What there is to tell of a component beside its status."""
    if facts.get("configured") is False:
        return "not configured"
    if "workers_count" in facts:
        return f"{number(facts['workers_count'])} alive, {number(facts['active_tasks'])} runs under way"
    if facts.get("last_tick_age_seconds") is not None:
        return f"looked {duration(facts['last_tick_age_seconds'])} ago"
    if facts.get("accounts"):
        return f"{number(facts['accounts'])} account" + ("s" if facts["accounts"] > 1 else "")
    return ""


def strip_label(strip: list[Any]) -> str:
    """A strip of statuses for those who do not see it."""
    looked = [each for each in strip if each is not None]
    well = sum(each == "healthy" for each in looked)
    return f"Healthy in {well} of {len(looked)} stretches of five minutes" if looked else "Nobody has looked yet"


def clock_time(moment: datetime | None) -> str:
    """`12:01:07`, with the day before it when it is not today; UTC, as the pages say."""
    if moment is None:
        return "–"
    return moment.strftime("%H:%M:%S" if moment.date() == now().date() else "%d %b %H:%M:%S")


def moment(text: str) -> datetime:
    """A time as reports tell it (ISO 8601)."""
    return datetime.fromisoformat(text)


def percent(probability: float) -> str:
    """`97 %`; never 0 or 100, for nothing is that sure."""
    return "< 1 %" if probability < 0.01 else "> 99 %" if probability > 0.99 else f"{round(probability * 100)} %"


def codes(indicators: list[dict[str, str]]) -> str:
    """The names of the indicators that say most, first."""
    order = {severity: place for place, severity in enumerate(("high", "medium", "low", "info"))}
    ranked = sorted(indicators, key=lambda each: order.get(each["severity"], len(order)))
    return ", ".join(dict.fromkeys(each["code"] for each in ranked if each["severity"] != "info"))


def duration(seconds: float | None) -> str:
    """Two units at most: `340 ms`, `3.1 s`, `2 min 5 s`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError


def milliseconds(value: int | None) -> str:
    """A duration that was measured in milliseconds."""
    return duration(None if value is None else value / 1000)


def number(value: int) -> str:
    """With thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def cron_words(expression: str) -> str:
    """The plain ones in words; any other is told by its expression alone."""
    if expression.startswith("@"):
        return {"@midnight": "daily", "@annually": "yearly"}.get(expression, expression[1:])
    minute, hour, *rest = expression.split()
    if rest != ["*", "*", "*"]:
        return ""
    if hour == "*" and (minute == "*" or minute.removeprefix("*/").isdigit()):
        return {"*": "every minute"}.get(minute, f"every {minute[2:]} minutes" if minute.startswith("*/") else f"hourly at :{minute:0>2}")
    return f"daily at {hour:0>2}:{minute:0>2}" if hour.isdigit() and minute.isdigit() else ""


def why_it_waits(run: TaskRun) -> str | None:
    """What a waiting run waits for, as a sentence; None when it does not wait."""
    if run.state == State.PENDING and run.waiting_for == WaitingFor.ETA and _is_due(run):
        return f"It has been due since {clock_time(run.eta)} and waits for a free worker."
    if run.state == State.RETRY and _is_due(run):
        return f"The last attempt failed; its retry has been due since {clock_time(run.eta)} and waits for a free worker."
    if run.state == State.RETRY:
        return f"The last attempt failed; it waits for its retry at {clock_time(run.eta)}."
    if run.state != State.PENDING:
        return None
    if run.waiting_for == WaitingFor.ETA:
        return f"It waits for its time, {clock_time(run.eta)}."
    return {
        WaitingFor.LIMIT: "It waits because a limit allows no more runs at the same time.",
        WaitingFor.PAUSE: "It waits because its queue, task or tenant is paused.",
        WaitingFor.RUN: "It waits for the runs before it to end.",
        WaitingFor.BROKER: "It waits to be handed to a message broker; that is tried every second.",
    }.get(WaitingFor(run.waiting_for or "queue"), "It waits in its queue for a free worker.")


def how_it_will_end(run: TaskRun) -> str | None:
    """What somebody has asked of a running run, as a sentence."""
    asked = revoke_requested(run)
    if asked is None:
        return None
    if asked is Ending.TERMINATE:
        return "Revocation requested, by force: it is being interrupted and will be revoked within seconds."
    return "Revocation requested: it ends at its next checkpoint. If it has none for long, end it by force."


def why_it_ended(run: TaskRun) -> str | None:
    """The recorded reason as a sentence; an unknown one is named."""
    return REASONS.get(run.reason, f"Trying again cannot help ({run.reason.replace('_', ' ')}).") if run.reason else None


def waited(run: TaskRun) -> str:
    """How long a run waits or has waited for its first start; a dash where retries make that meaningless."""
    if run.state == State.RETRY or run.waiting_for == WaitingFor.ETA:
        return f"{'due since' if _is_due(run) else 'until'} {clock_time(run.eta)}"
    if run.state == State.PENDING:
        return duration(_seconds(run.created_at, now()))
    return duration(_seconds(run.created_at, run.started_at)) if run.started_at and run.fence == 1 else "–"


def took(run: TaskRun | TaskAttempt) -> str:
    """How long the last attempt took, or has taken so far."""
    if run.state == State.STARTED:
        return duration(_seconds(run.started_at, now())) if run.started_at else "–"
    return milliseconds(run.duration_ms)


def progress_of(run: TaskRun) -> dict[str, Any] | None:
    """`{done, total, note}` of a run that says how far it is, for a bar."""
    found = run.progress or {}
    done, total = found.get("done"), found.get("total")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return None
    return {"done": min(done, total), "total": total, "note": str(found.get("note") or "")[:80]}


def private(value: Any, name: str = "") -> Any:
    """A value with everything left out that looks secret, personal or long."""
    if value == MASK:
        return value
    if SECRET_NAMES.search(name) and value not in (None, "", [], {}):
        return "‹hidden›"
    if isinstance(value, str):
        return safe_text(value) if len(value) <= LONGEST_VALUE else f"‹hidden: {number(len(value))} characters›"
    if isinstance(value, dict):
        return {str(key)[:LONGEST_VALUE]: private(inner, str(key)) for key, inner in list(value.items())[:MOST_ITEMS]}
    if isinstance(value, list):
        shown = [private(inner) for inner in value[:MOST_ITEMS]]
        return [*shown, f"‹{number(len(value) - MOST_ITEMS)} more›"] if len(value) > MOST_ITEMS else shown
    return value


def shown(value: Any, name: str = "") -> str:
    """`private` as text."""
    kept = private(value, name)
    if isinstance(kept, str):
        return kept
    short = json.dumps(kept, ensure_ascii=False)
    return short if len(short) <= 60 else json.dumps(kept, ensure_ascii=False, indent=2)


def _is_due(run: TaskRun) -> bool:
    return run.eta is None or run.eta <= now()


def _seconds(start: datetime | None, end: datetime) -> float | None:
    return max(0.0, (end - start).total_seconds()) if start is not None else None
