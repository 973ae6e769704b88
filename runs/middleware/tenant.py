"""Binds the run's tenant and user around the actor. Fails closed: without a tenant, or with another than the message's, the
run ends as a dead letter and never starts."""

from __future__ import annotations

from contextvars import Token
from typing import TYPE_CHECKING

from dramatiq.middleware import SkipMessage

from core.errors import TenantError
from core.tenancy import SYSTEM_TENANT, Identity, bind, unbind
from runs.middleware.base import RunMiddleware
from runs.retry import failed

if TYPE_CHECKING:
    from runs.broker import RunBroker
    from runs.message import RunMessage


class TenantBinding(RunMiddleware):
    """The claim has compared the tenants already; this is the second wall."""

    def __init__(self) -> None:
        self._bound: dict[str, Token[Identity | None]] = {}

    def before_run(self, broker: RunBroker, message: RunMessage) -> None:
        """Binds, or skips with a FAILURE."""
        run = message.claim
        if run is None or not run.tenant_id or run.tenant_id != message.envelope.tenant_id:
            if run is not None:
                message.outcome = failed(
                    run, TenantError("The message and the record name different tenants; the run was not started."), 0.0
                )
            message.fail()
            raise SkipMessage("no tenant")
        identity = Identity(run.tenant_id, run.user_id, is_system=run.tenant_id == SYSTEM_TENANT)
        self._bound[run.run_id] = bind(identity)

    def after_run(self, broker: RunBroker, message: RunMessage, result: object, exception: BaseException | None) -> None:
        """Binds whatever was bound before: nothing."""
        token = self._bound.pop(message.run_id, None)
        if token is not None:
            unbind(token)

    def after_skip(self, broker: RunBroker, message: RunMessage) -> None:
        """The same."""
        self.after_run(broker, message, None, None)
