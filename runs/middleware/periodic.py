"""Makes `periodic` an actor option, as periodiq's own middleware does.

Not periodiq's: that one acknowledges a scheduled message older than 30 s without running it, so a backlog or a retry would
lose ticks. Here a tick is a row, and late is late.
"""

from __future__ import annotations

from dramatiq import Middleware

from runs.schedule import OPTIONS


class Periodic(Middleware):
    """Declares the options that tasks may carry."""

    @property
    def actor_options(self) -> set[str]:
        """What `@task` accepts beside the queue."""
        return {"periodic", "retries", "base_backoff", "mail_host", *OPTIONS}
