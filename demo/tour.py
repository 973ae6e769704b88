"""The demo's runs, started over HTTP as any service would, and what each of them has to come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from demo.tenants import DemoClients, DemoKeys

STOP_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the tour: what is asked for, and how it has to end."""

    tenant: str
    title: str
    path: str
    body: dict[str, Any]
    state: str
    attempts: int = 1
    error_type: str | None = None


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
        )


def steps(clients: DemoClients, letter: str) -> list[list[Step]]:
    """The tour in rounds; a round starts when the one before has ended. `letter` makes each tour's mail recognisable."""
    sync = "/api/email/sync"
    mail = {
        "email_client_id": clients.acme_support,
        "to": ["office@globex.example"],
        "subject": f"Grüße aus dem Garten, {letter}",
        "body_text": "The tulips arrived safely. Thank you!\n",
        "body_html": "<p>The <b>tulips</b> arrived safely. Thank you!</p>",
    }
    first = [
        Step("acme", "syncs its support mailbox", sync, {"email_client_id": clients.acme_support}, "SUCCESS"),
        Step("globex", "syncs its office mailbox", sync, {"email_client_id": clients.globex_office}, "SUCCESS"),
        Step(
            "acme",
            "syncs a mailbox whose server is away at first",
            sync,
            {"email_client_id": clients.acme_orders_flaky},
            "SUCCESS",
            attempts=2,
        ),
        Step("acme", "sends a mail to globex", "/api/email/send", mail, "SUCCESS"),
        Step(
            "globex",
            "syncs with a wrong password, which ends as a dead letter",
            sync,
            {"email_client_id": clients.globex_sales_wrong_password},
            "FAILURE",
            error_type="AuthenticationRefused",
        ),
    ]
    arrival = Step("globex", "syncs again and finds the mail from acme", sync, {"email_client_id": clients.globex_office}, "SUCCESS")
    return [first, [arrival]]


class Tour:
    """Walks the rounds against a running API."""

    def __init__(self, url: str, keys: DemoKeys, clients: DemoClients) -> None:
        self._http = {
            tenant: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10)
            for tenant, key in (("acme", keys.acme), ("globex", keys.globex))
        }
        self._rounds = steps(clients, time.strftime("%H:%M:%S"))

    def walk(self, on_change: Callable[[Step, dict[str, Any]], None]) -> Iterator[Ended]:
        """Yields each run as it ends; `on_change` hears of retries meanwhile."""
        for batch in self._rounds:
            yield from self._round(batch, on_change)

    def close(self) -> None:
        """Closes the connections."""
        for client in self._http.values():
            client.close()

    def _round(self, batch: list[Step], on_change: Callable[[Step, dict[str, Any]], None]) -> Iterator[Ended]:
        started = time.monotonic()
        waiting = [(step, self._start(step)) for step in batch]
        seen: dict[str, str] = {}
        while waiting:
            for entry in list(waiting):
                step, run_id = entry
                run = self._http[step.tenant].get(f"/api/tasks/{run_id}").raise_for_status().json()
                is_late = time.monotonic() - started > STOP_SECONDS
                if run["ready"] or is_late:
                    waiting.remove(entry)
                    yield Ended(step, run, time.monotonic() - started)
                elif seen.get(run_id) != run["state"] and run["state"] == "RETRY":
                    on_change(step, run)
                seen[run_id] = run["state"]
            time.sleep(POLL_SECONDS)

    def _start(self, step: Step) -> str:
        accepted = self._http[step.tenant].post(step.path, json=step.body)
        accepted.raise_for_status()
        return str(accepted.json()["taskId"])
