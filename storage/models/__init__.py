"""Every table of the record."""

from storage.models.base import Base
from storage.models.controls import Limit, Pause
from storage.models.mail import EmailAttachment, EmailClient, EmailFolder, EmailMessage, OutboundEmail, OutboundRecipient
from storage.models.runs import TaskAttempt, TaskRun, WorkerProcess
from storage.models.schedules import Schedule, ScheduleTick
from storage.models.tenants import ApiKey, DashboardSession, Tenant, User

__all__ = [
    "ApiKey",
    "Base",
    "DashboardSession",
    "EmailAttachment",
    "EmailClient",
    "EmailFolder",
    "EmailMessage",
    "Limit",
    "OutboundEmail",
    "OutboundRecipient",
    "Pause",
    "Schedule",
    "ScheduleTick",
    "TaskAttempt",
    "TaskRun",
    "Tenant",
    "User",
    "WorkerProcess",
]
