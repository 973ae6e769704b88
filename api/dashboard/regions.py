"""The parts of the pages that change. A page renders them once, the stream again and again; both call the functions here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from api.dashboard import webhooks, words
from api.dashboard.sessions import Viewer
from api.dashboard.templating import render
from api.health import health_of
from api.routes.queues import paused_queues
from core.errors import InvalidInputError
from runs.control import (
    QueueStats,
    cursor_after,
    get_queue_stats,
    get_task_status,
    get_workers,
    is_ready,
    list_runs,
    parse_cursor,
    parse_states,
)
from runs.groups import find_group, get_neighbours
from scheduler.control import get_schedules
from storage.repositories.email_clients import EmailClients
from storage.repositories.mail_views import MailViews
from storage.repositories.runs import RunFilter
from storage.repositories.spam_verdicts import SpamVerdicts
from storage.repositories.tenants import Tenants
from storage.states import WAITING, OutboundStatus, State

Regions = dict[str, Markup]
FILTERS = ("state", "queue", "task", "q", "tenant", "reason", "group")
LATEST = 20
OUTBOX_PAGE = 50
WAITING_STATES = ",".join(sorted(WAITING)).lower()


@dataclass(frozen=True, slots=True)
class Filters:
    """What the list of runs is narrowed to, as it stands in the URL."""

    state: str = ""
    queue: str = ""
    task: str = ""
    q: str = ""
    tenant: str = ""
    reason: str = ""
    group: str = ""
    cursor: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """Raises InvalidInputError for a state that is none."""
        given = {name: query.get(name, "").strip()[:300] for name in (*FILTERS, "cursor")}
        parse_states(given["state"])
        return cls(**given)

    @property
    def is_narrowed(self) -> bool:
        """Whether anything but the page is chosen."""
        return any(getattr(self, name) for name in FILTERS)

    def query(self, **changes: str) -> str:
        """The URL's query with changes; what is empty is left out."""
        values = {name: getattr(self, name) for name in FILTERS} | changes
        return urlencode({name: value for name, value in values.items() if value})

    def for_letters(self) -> RunFilter:
        """Those of them that narrow dead letters."""
        return RunFilter(
            (), self.queue or None, self.task or None, None, dead_letters_only=True, reason=self.reason or None, group_id=self.group or None
        )

    def for_runs(self) -> RunFilter:
        """As the repository takes it; the tenant is the session's own."""
        states = parse_states(self.state)
        return RunFilter(states, self.queue or None, self.task or None, None, self.q or None, group_id=self.group or None)


def overview(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """Tiles, queues and runs."""
    filters = Filters.of(query)
    with viewer.looking_at(filters.tenant).acting.session() as session:
        queues = get_queue_stats(session)
        page = list_runs(session, filters.for_runs(), cursor=filters.cursor or None)
        workers = get_workers(session)
        names = Tenants(session).names() if viewer.is_admin else {}
        chosen = find_group(session, filters.group or None)
    paused = paused_queues(viewer.acting)
    tiles = _tiles(queues, filters)
    threads = sum(worker.worker.threads for worker in workers)
    group = {"group": render("_chosen_group.html", group=chosen)} if filters.group else {}
    return {
        **group,
        "tiles": render("_tiles.html", tiles=tiles, workers=len(workers), threads=threads),
        "queues": render("_queues.html", queues=queues, filters=filters, State=State, paused=paused, can_pause=viewer.is_admin),
        "runs": render("_runs.html", page=page, filters=filters, names=names, viewer=viewer, words=words, State=State),
    }


def run(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """Everything about one run. Raises NotFoundError."""
    with viewer.acting.session() as session:
        details = get_task_status(session, query.get("id", ""))
        around = get_neighbours(session, details.run)
        names = Tenants(session).names() if viewer.is_admin else {}
    found = details.run
    values = {name: words.shown(value, name) for name, value in found.args.items()}
    facts = {"run": found, "attempts": details.attempts, "tenant_name": names.get(found.tenant_id), "arguments": values, "around": around}
    return {"run": render("_run.html", **facts, viewer=viewer, words=words, ready=is_ready(found), State=State)}


def letters(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """What failed and waits for somebody's decision."""
    filters = Filters.of(query)
    with viewer.looking_at(filters.tenant).acting.session() as session:
        page = list_runs(session, filters.for_letters(), cursor=filters.cursor or None)
        names = Tenants(session).names() if viewer.is_admin else {}
    return {"letters": render("_letters.html", page=page, filters=filters, names=names, viewer=viewer, words=words)}


def mail(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """The accounts and how their syncs went."""
    with viewer.looking_at(query.get("tenant", "").strip()[:100]).acting.session() as session:
        accounts = EmailClients(session).all()
        counts = MailViews(session).message_counts()
        names = Tenants(session).names() if viewer.is_admin else {}
        latest = [] if viewer.is_admin else MailViews(session).messages(None, None, None, limit=LATEST)
        verdicts = SpamVerdicts(session).shown([each.id for each in latest])
    by_id = {account.id: account.name for account in accounts}
    return {
        "accounts": render("_accounts.html", accounts=accounts, counts=counts, names=names, viewer=viewer),
        "latest": render(
            "_latest.html", latest=latest, names=by_id, verdicts=verdicts
        ),  # subjects are for the tenant's own people, not for operators
    }


def outbox(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """Mails on their way out and what became of them."""
    status = query.get("status", "").strip()[:20]
    if status and status not in list(OutboundStatus):
        raise InvalidInputError(f"A status is one of {', '.join(OutboundStatus)}.")
    cursor = query.get("cursor", "").strip()[:300]
    with viewer.looking_at(query.get("tenant", "").strip()[:100]).acting.session() as session:
        mails = MailViews(session).outbound(status or None, before=parse_cursor(cursor), limit=OUTBOX_PAGE + 1)
        names = Tenants(session).names() if viewer.is_admin else {}
    shown, last = mails[:OUTBOX_PAGE], mails[OUTBOX_PAGE - 1] if len(mails) > OUTBOX_PAGE else None
    older = urlencode({**_given(query), "cursor": cursor_after(last.created_at, last.id)}) if last is not None else ""
    facts = {"mails": shown, "names": names, "status": status, "older": older, "newest": urlencode(_given(query)) if cursor else None}
    return {"outbox": render("_outbox.html", **facts, viewer=viewer, words=words)}


def _given(query: Mapping[str, str]) -> dict[str, str]:
    return {name: query[name] for name in ("status", "tenant") if query.get(name)}


def schedules(viewer: Viewer, _query: Mapping[str, str]) -> Regions:
    """When each schedule fires and what became of its last run. They are the system's, and told to everybody."""
    with viewer.acting.system_session() as session:
        found = get_schedules(session)
    return {"schedules": render("_schedules.html", schedules=found, viewer=viewer, words=words)}


def health(viewer: Viewer, _query: Mapping[str, str]) -> Regions:
    """Every component, and its last hours."""
    looks = health_of(viewer.acting.engine)
    report = looks.detailed(viewer.acting.identity)
    strips = looks.strips()
    order = {name: place for place, name in enumerate(words.COMPONENTS)}
    names = sorted(report.components, key=lambda name: (order.get(name, len(order)), name))
    return {"health": render("_health.html", report=report, names=names, strips=strips, words=words)}


PAGES: dict[str, Callable[[Viewer, Mapping[str, str]], Regions]] = {
    "overview": overview,
    "run": run,
    "letters": letters,
    "mail": mail,
    "outbox": outbox,
    "schedules": schedules,
    "health": health,
    "webhooks": webhooks.region,
}


def regions_of(viewer: Viewer, query: Mapping[str, str]) -> Regions:
    """The regions of the page that `query` names. Raises InvalidInputError for none of ours."""
    page = PAGES.get(query.get("page", ""))
    if page is None:
        raise InvalidInputError("There is no such page.")
    return page(viewer, query)


def _tiles(queues: list[QueueStats], filters: Filters) -> list[dict[str, Any]]:
    def total(*states: State) -> int:
        return sum(queue.counts.get(state, 0) for queue in queues for state in states)

    oldest = max((queue.oldest_seconds for queue in queues if queue.oldest_seconds is not None), default=None)
    retrying, failed = total(State.RETRY), total(State.FAILURE)
    succeeded = sum(queue.recent.get(State.SUCCESS, 0) for queue in queues)
    newest = max((queue.looked_at for queue in queues), default=0)
    waits = f"the longest for {words.duration(oldest)}" if oldest is not None else "nothing is due"
    if retrying:
        waits = f"{words.number(retrying)} of them for a retry"
    letters = "/dead-letters?" + filters.query(state="", q="")
    tiles: list[tuple[str, str, int, str, str]] = [
        ("waiting", "Waiting", total(*WAITING), waits, WAITING_STATES),
        ("running", "Running", total(State.STARTED), "claimed by a worker", "started"),
        ("done", "Succeeded", succeeded, f"of the newest {words.number(newest)} runs", "success"),
        ("failed", "Dead letters", failed, "failed, to be looked at" if failed else "nothing failed for good", "failure"),
    ]
    has_more = {"waiting": any(queue.has_more for queue in queues), "failed": any(State.FAILURE in queue.capped for queue in queues)}
    return [
        {
            "kind": kind,
            "label": label,
            "count": count,
            "note": note,
            "href": letters if kind == "failed" else f"/?{filters.query(state=state)}",
            "is_on": filters.state == state,
            "has_more": has_more.get(kind, False),
        }
        for kind, label, count, note, state in tiles
    ]
