"""From a tenant's choices and the operator's settings to the rules that the mail domain judges by."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from core.errors import InvalidInputError
from core.logging import get_logger
from core.settings import get_settings
from mail.accounts import Secret
from mail.spam.engines.engine import Engine
from mail.spam.engines.rspamd import Rspamd
from mail.spam.engines.spamc import Spamc
from mail.spam.verdict import Context
from storage.engine import identity_of
from storage.repositories.spam_choices import Choices, SpamChoices

if TYPE_CHECKING:
    from mail.spam.judging import GuardedEngine, Rules
    from mail.spam.learning import Delta

log = get_logger(__name__)


def rules_for(session: Session, *, with_engines: bool) -> Rules:
    """Of the session's tenant. Without engines nothing is asked over a network but, where that is wanted, the keys of signatures."""
    from mail.spam.judging import Rules  # with the first message, as in `actors.spam.judged`

    tenant_id = identity_of(session).tenant_id
    choices = SpamChoices(session).all(tenant_id)
    return Rules(_context(choices), choices.lists, engines() if with_engines else (), tenant_id)


def default_threshold() -> float:
    """The shared model's, for tenants that say nothing."""
    from mail.spam.check import RULES_THRESHOLD
    from mail.spam.model import load_model

    model = load_model()
    return model.threshold if model is not None else RULES_THRESHOLD


def model_version() -> str | None:
    """Of the shared model; None while there is none, and indicators alone judge."""
    from mail.spam.model import load_model

    model = load_model()
    return model.name if model is not None else None


def engines() -> tuple[GuardedEngine, ...]:
    """Those that are configured, each with its connections and its breaker, the same for the whole process."""
    settings = get_settings()
    password = settings.rspamd_password.get_secret_value() if settings.rspamd_password else None
    return _engines(settings.rspamd_url, settings.rspamd_controller_url, password, settings.spamd_url, settings.spam_engine_timeout)


@lru_cache(maxsize=1)
def _engines(
    rspamd: str | None, controller: str | None, password: str | None, spamd: str | None, timeout: float
) -> tuple[GuardedEngine, ...]:
    from mail.spam.judging import GuardedEngine

    found: list[Engine] = []
    if rspamd:
        secret = Secret(password) if password else None
        found.append(Rspamd(rspamd, controller_url=controller, password=secret, timeout=timeout))
    if spamd:
        found.append(Spamc(spamd, timeout=timeout))
    return tuple(GuardedEngine(each) for each in found)


def _context(choices: Choices) -> Context:
    settings = choices.settings
    return Context(
        trusted_authserv_ids=frozenset(settings.trusted_authserv_ids),
        own_domains=frozenset(settings.own_domains),
        brands={word: frozenset(domains) for word, domains in settings.brands.items()},
        dkim_lookup=key_lookup(),
        threshold=choices.threshold,
        delta=_delta(choices.delta),
    )


def key_lookup() -> Callable[[str], bytes | None] | None:
    """None, and no signature is verified again, unless the operator names a name server."""
    server = get_settings().spam_dkim_dns
    if server is None:
        return None
    from mail.spam.key_records import key_records

    return key_records(server)


def _delta(weights: bytes | None) -> Delta | None:
    """Weights that cannot be read, say of a later release, do not count."""
    if weights is None:
        return None
    from mail.spam.learning import Delta

    try:
        return Delta.from_bytes(weights)
    except InvalidInputError:
        log.warning("spam_weights_unreadable")
        return None
