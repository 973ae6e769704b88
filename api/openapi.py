"""The OpenAPI document: FastAPI's, with every task's own arguments and the one form of every error."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from runs.registry import arguments_model, get_task, task_names

Document = dict[str, Any]
BY_NAME = {
    "/api/email/sync": "sync_emails",
    "/api/email/send": "send_email",
    "/api/email/delete": "delete_emails",
    "/api/email/spam-check": "check_spam",
    "/api/spam/backfill": "check_mailbox_spam",
}
OPEN = ("/health", "/health/live", "/health/ready")
REF = "#/components/schemas/"
ABOUT = (
    "Background tasks for e-mail products. Send `Authorization: Bearer mr_...`; a tenant's key fixes the tenant, an admin's may name "
    "one in `X-Tenant-Id`; `X-User-Id` names the user. Errors are problem+json (RFC 9457)."
)
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `detail` is one sentence for people, `type` is stable and for programs.",
    "required": ["type", "title", "status", "detail", "instance", "requestId"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "requestId": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}}},
        },
    },
}


def document(app: FastAPI) -> Document:
    """Made once, when it is first asked for: the tasks are declared by then."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
        components = made.setdefault("components", {})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        _describe_tasks(made, components.setdefault("schemas", {}))
        _describe_errors(made, components["schemas"])
        app.openapi_schema = made
    return app.openapi_schema


def _describe_tasks(made: Document, schemas: Document) -> None:
    """Each task's arguments, and a request that is one of them by its `task`."""
    choices = {}
    for name in task_names():
        arguments = arguments_model(get_task(name)).model_json_schema(ref_template=REF + "{model}")
        schemas |= arguments.pop("$defs", {})
        schemas[f"{name}_arguments"] = {**arguments, "description": get_task(name).fn.__doc__ or name}
        schemas[f"{name}_request"] = _request_of(name, schemas["TaskRequest"])
        choices[name] = f"{REF}{name}_request"
    for path, name in BY_NAME.items():
        if name in choices:
            _set_body(made, path, {"$ref": f"{REF}{name}_arguments"})
    if choices:
        discriminator = {"propertyName": "task", "mapping": choices}
        _set_body(made, "/api/tasks", {"oneOf": [{"$ref": ref} for ref in choices.values()], "discriminator": discriminator})


def _request_of(name: str, general: Document) -> Document:
    special = {"task": {"const": name, "type": "string"}, "args": {"$ref": f"{REF}{name}_arguments"}}
    required = ["task", "args"] if get_task(name).fn.__code__.co_argcount else ["task"]
    return {**general, "title": name, "properties": {**general["properties"], **special}, "required": required}


def _set_body(made: Document, path: str, schema: Document) -> None:
    made["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"] = schema


def _describe_errors(made: Document, schemas: Document) -> None:
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = PROBLEM
    error = {"description": "An error", "content": {"application/problem+json": {"schema": {"$ref": f"{REF}Problem"}}}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = error
            operation["security"] = [] if path in OPEN else [{"key": []}]
