"""A tenant's own wording of transactional mails, and how they go out: what it says itself, and what the installation says for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, delete, select

from core.errors import InvalidInputError, NotFoundError, PermanentError, TenantError
from core.settings import Settings
from core.tenancy import SYSTEM_TENANT
from mail.addresses import Address, parse_address
from mail.templates.catalogue import Kind, Source, kind_named, locales_for, normal_locale, shipped, shipped_locales
from mail.templates.letters import House, Template
from storage.models import EmailClient, MailSettings, MailTemplate, Tenant
from storage.repositories.base import Repository

NO_SENDER = "There is no sender for this: set SYSTEM_SENDER, or the tenant's own (senderAddress in PUT /api/mail/settings)."
ACCOUNT_GONE = (
    "The account that the tenant's mails go out from does not exist any more; choose another (clientId in PUT /api/mail/settings)."
)
FIELDS = tuple(column.name for column in MailSettings.__table__.columns if column.name not in {"tenant_id", "updated_at"})


class MailTemplates(Repository):
    """Templates of the identity's tenant. The system without a tenant has none of its own: it sees what ships."""

    def all(self) -> Sequence[MailTemplate]:
        """The tenant's own."""
        return self.session.scalars(self._own().order_by(MailTemplate.name, MailTemplate.locale)).all()

    def find(self, name: str, locale: str) -> Template:
        """What a mail of this kind says in this language, or in the nearest there is. Raises NotFoundError for an unknown name."""
        kind = kind_named(name)
        own = {row.locale: row for row in self.session.scalars(self._own().where(MailTemplate.name == kind.name))}
        for tag in locales_for(locale):
            if (row := own.get(tag)) is not None:
                return Template(kind, tag, Source(row.subject, row.text, row.html), is_own=True)
            if tag in shipped_locales(name):
                return Template(kind, tag, shipped(name, tag))
        raise NotFoundError(f"The template {name} exists in no language that could be used.")

    def put(self, kind: Kind, locale: str, source: Source) -> MailTemplate:
        """Keeps a template that was checked (`mail.templates.letters.check_template`), instead of any before it."""
        if self.identity.tenant_id == SYSTEM_TENANT:
            raise TenantError("A template belongs to a tenant; name it in X-Tenant-Id.")
        key = {"tenant_id": self.identity.tenant_id, "name": kind.name, "locale": normal_locale(locale)}
        row = self.session.merge(MailTemplate(**key, subject=source.subject, text=source.text, html=source.html))
        self.session.flush()
        self.session.refresh(row)
        return row

    def remove(self, name: str, locale: str) -> None:
        """What ships counts again. Raises NotFoundError when the tenant has none."""
        mine = (self._is_own(), MailTemplate.name == kind_named(name).name, MailTemplate.locale == normal_locale(locale))
        removed = self.session.scalars(delete(MailTemplate).where(*mine).returning(MailTemplate.name)).all()
        if not removed:
            raise NotFoundError(f"There is no template {name} of your own in {normal_locale(locale)}.")

    def _own(self) -> Any:
        return select(MailTemplate).where(self._is_own())

    def _is_own(self) -> ColumnElement[bool]:
        return self.owns(MailTemplate) & (MailTemplate.tenant_id == self.identity.tenant_id)


class TenantMail(Repository):
    """The mail settings of the identity's tenant."""

    def row(self) -> MailSettings | None:
        """As the tenant has set them."""
        mine = self.owns(MailSettings) & (MailSettings.tenant_id == self.identity.tenant_id)
        return self.session.scalar(select(MailSettings).where(mine))

    def put(self, fields: Mapping[str, Any], *, may_choose_sender: bool) -> MailSettings:
        """Replaces all of them. Raises NotFoundError for a foreign account, InvalidInputError for one that cannot send.

        Raises TenantError for a sender of its own over the system's server, unless somebody who may has approved it.
        """
        if self.identity.tenant_id == SYSTEM_TENANT:
            raise TenantError("Mail settings belong to a tenant; name it in X-Tenant-Id.")
        before = self.row()
        if fields.get("client_id") is not None and not self.account(fields["client_id"]).smtp_host:
            raise InvalidInputError("This e-mail client has no SMTP server; set smtp_host.")
        address = fields.get("sender_address")
        was_approved = before is not None and before.client_id is None and before.sender_address == address
        if address is not None and fields.get("client_id") is None and not (may_choose_sender or was_approved):
            raise TenantError(
                "Over the system's mail server only an admin key may set senderAddress; or name an account of yours in clientId."
            )
        values = {name: fields.get(name) for name in FIELDS}
        row = self.session.merge(MailSettings(tenant_id=self.identity.tenant_id, **values))
        self.session.flush()
        self.session.refresh(row)
        return row

    def account(self, client_id: str) -> EmailClient:
        """The account of the tenant that its mails go out from, whichever user it belongs to. Raises NotFoundError."""
        mine = EmailClient.tenant_id == self.identity.tenant_id
        found = self.session.scalar(select(EmailClient).where(mine, EmailClient.id == client_id)) if client_id else None
        if found is None:
            raise NotFoundError("There is no e-mail client with this id.")
        return found

    def client(self) -> EmailClient | None:
        """The account that the mails go out from; None: over the system's server. Raises PermanentError when it is gone."""
        row = self.row()
        if row is None or row.client_id is None:
            return None
        try:
            return self.account(row.client_id)
        except NotFoundError:
            raise PermanentError(ACCOUNT_GONE) from None

    def server(self, settings: Settings) -> str | None:
        """The host name of the server that the tenant's mails go out over."""
        row = self.row()
        if row is not None and row.client_id is not None:
            mine = (EmailClient.tenant_id == self.identity.tenant_id, EmailClient.id == row.client_id)
            return self.session.scalar(select(EmailClient.smtp_host).where(*mine))
        return settings.system_smtp.host if settings.system_smtp is not None else None

    def house(self, settings: Settings) -> House:
        """What is in force: the tenant's own, else the installation's."""
        tenant = self.session.get(Tenant, self.identity.tenant_id)
        house = House(
            app_name=tenant.name if tenant is not None and tenant.id != SYSTEM_TENANT else "Mailroom",
            locale=normal_locale(settings.mail_locale),
            link_base_url=settings.link_base_url,
            verification_minutes=settings.verification_expires_hours * 60,
            password_reset_minutes=settings.password_reset_expires_minutes,
        )
        row = self.row()
        if row is not None:
            hours = row.verification_expires_hours
            own: dict[str, Any] = {
                "app_name": row.app_name,
                "locale": row.locale,
                "accent_color": row.accent_color,
                "link_base_url": row.link_base_url,
                "verification_path": row.verification_path,
                "password_reset_path": row.password_reset_path,
                "verification_minutes": hours * 60 if hours is not None else None,
                "password_reset_minutes": row.password_reset_expires_minutes,
            }
            house = replace(house, **{name: value for name, value in own.items() if value is not None})
        return replace(house, sender=self._sender(settings, row, house.app_name))

    def _sender(self, settings: Settings, row: MailSettings | None, app_name: str) -> Address | None:
        account = None
        if row is not None and row.client_id is not None:
            account = self.session.scalar(
                select(EmailClient.email).where(EmailClient.tenant_id == self.identity.tenant_id, EmailClient.id == row.client_id)
            )
        server = settings.system_smtp
        login = server.username if server is not None and "@" in (server.username or "") else None
        text = (row.sender_address if row is not None else None) or account or settings.system_sender or login
        if text is None:
            return None
        address = parse_address(text, field="SYSTEM_SENDER" if text == settings.system_sender else "the sender's address")
        own_name = row.sender_name if row is not None else None
        return Address(own_name or address.name or app_name, address.addr)


def sender_of(house: House) -> Address:
    """From whom the letters are. Raises PermanentError when nobody has said so."""
    if house.sender is None:
        raise PermanentError(NO_SENDER)
    return house.sender
