"""Every table of the record."""

from storage.models.base import Base
from storage.models.controls import Limit, Pause
from storage.models.health import ServiceHealth
from storage.models.letters import MailSettings, MailTemplate
from storage.models.mail import EmailAttachment, EmailClient, EmailFolder, EmailMessage, EmailSearch, EmailSource, MailHost, ThreadLink
from storage.models.outbox import DkimKey, OutboundEmail, OutboundRecipient, Suppression
from storage.models.requests import RequestKey
from storage.models.runs import RunSecret, TaskAttempt, TaskRun, WorkerProcess
from storage.models.schedules import Schedule, ScheduleTick
from storage.models.spam import SpamFeedback, SpamListEntry, SpamSettings, SpamVerdict, SpamWeights
from storage.models.tenants import ApiKey, DashboardSession, Tenant, User
from storage.models.webhooks import Webhook, WebhookDelivery

__all__ = [
    "ApiKey",
    "Base",
    "DashboardSession",
    "DkimKey",
    "EmailAttachment",
    "EmailClient",
    "EmailFolder",
    "EmailMessage",
    "EmailSearch",
    "EmailSource",
    "Limit",
    "MailHost",
    "MailSettings",
    "MailTemplate",
    "OutboundEmail",
    "OutboundRecipient",
    "Pause",
    "RequestKey",
    "RunSecret",
    "Schedule",
    "ScheduleTick",
    "ServiceHealth",
    "SpamFeedback",
    "SpamListEntry",
    "SpamSettings",
    "SpamVerdict",
    "SpamWeights",
    "Suppression",
    "TaskAttempt",
    "TaskRun",
    "Tenant",
    "ThreadLink",
    "User",
    "Webhook",
    "WebhookDelivery",
    "WorkerProcess",
]
