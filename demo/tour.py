"""The demo's runs, started over HTTP as any service would, and what each of them has to come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from core.errors import UnavailableError
from demo.tenants import DemoClients, DemoKeys

STOP_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the tour: what is asked for, after which other step, and how it has to end."""

    name: str
    tenant: str
    title: str
    path: str
    body: dict[str, Any]
    state: str
    attempts: int = 1
    error_type: str | None = None
    messages: int = 0
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A run of the tour that has ended (or did not in time)."""

    step: Step
    run: dict[str, Any]
    seconds: float

    @property
    def is_as_intended(self) -> bool:
        """Whether the run came to what the demo says it should."""
        error = self.run.get("error") or {}
        tried = len([attempt for attempt in self.run["attempts"] if attempt["state"] != "PENDING"])
        return bool(
            self.run["state"] == self.step.state
            and tried >= self.step.attempts
            and (self.step.error_type is None or error.get("type") == self.step.error_type)
            and (self.run["result"] or {}).get("messages_synced", 0) >= self.step.messages
        )


def steps(clients: DemoClients, letter: str) -> list[Step]:
    """The tour. `letter` makes each tour's mail recognisable."""
    sync = "/api/email/sync"

    def account(client_id: str) -> dict[str, Any]:
        return {"email_client_id": client_id}

    mail = {
        **account(clients.acme_support),
        "to": ["office@globex.example"],
        "subject": f"Grüße aus dem Garten, {letter}",
        "body_text": "The tulips arrived safely. Thank you!\n",
        "body_html": "<p>The <b>tulips</b> arrived safely. Thank you!</p>",
    }
    wrong = "syncs with a wrong password, which ends as a dead letter"
    refused = "AuthenticationRefused"
    return [
        Step("support", "acme", "syncs its support mailbox", sync, account(clients.acme_support), "SUCCESS"),
        Step("office", "globex", "syncs its office mailbox", sync, account(clients.globex_office), "SUCCESS"),
        Step(
            "flaky",
            "acme",
            "syncs a mailbox whose server is away at first",
            sync,
            account(clients.acme_orders_flaky),
            "SUCCESS",
            attempts=2,
        ),
        Step("wrong", "globex", wrong, sync, account(clients.globex_sales_wrong_password), "FAILURE", error_type=refused),
        Step("mail", "acme", "sends a mail to globex", "/api/email/send", mail, "SUCCESS", after="office"),
        Step(
            "arrival", "globex", "syncs again and finds the mail", sync, account(clients.globex_office), "SUCCESS", messages=1, after="mail"
        ),
    ]


class Tour:
    """Walks the steps against a running API."""

    def __init__(self, url: str, keys: DemoKeys, clients: DemoClients) -> None:
        self._http = {
            tenant: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10)
            for tenant, key in (("acme", keys.acme), ("globex", keys.globex))
        }
        self._steps = steps(clients, time.strftime("%H:%M:%S"))

    def walk(self, on_change: Callable[[Step, dict[str, Any]], None]) -> Iterator[Ended]:
        """Yields each run as it ends, or when it is too late for it; `on_change` hears of retries meanwhile."""
        to_start = list(self._steps)
        ended: set[str | None] = {None}
        under_way: dict[str, tuple[Step, float]] = {}
        retried: set[str] = set()
        while to_start or under_way:
            for step in [step for step in to_start if step.after in ended]:
                to_start.remove(step)
                under_way[self._start(step)] = (step, time.monotonic())
            for run_id, (step, since) in list(under_way.items()):
                run = self._call(step.tenant, "GET", f"/api/tasks/{run_id}")
                seconds = time.monotonic() - since
                if run["ready"] or seconds > STOP_SECONDS:
                    del under_way[run_id]
                    ended.add(step.name)
                    yield Ended(step, run, seconds)
                elif run["state"] == "RETRY" and run_id not in retried:
                    retried.add(run_id)
                    on_change(step, run)
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Closes the connections."""
        for client in self._http.values():
            client.close()

    def _start(self, step: Step) -> str:
        return str(self._call(step.tenant, "POST", step.path, step.body)["taskId"])

    def _call(self, tenant: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Raises UnavailableError with what the API said."""
        try:
            answer = self._http[tenant].request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(f"The API did not answer {method} {path} ({type(error).__name__}).") from error
        found: dict[str, Any] = answer.json()
        if answer.is_error:
            raise UnavailableError(f"The API answered {method} {path} with {answer.status_code}: {found.get('detail', 'no detail')}")
        return found
