"""What tasks there are and what arguments they take, read off the actors' signatures.

One function in one file of actors/ is enough: the API, its schema, the commands and the dashboard find it here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import orjson
from dramatiq import Actor, Broker, get_broker
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from core.errors import InvalidInputError, NotFoundError


@dataclass(frozen=True, slots=True)
class Resource:
    """Marks an argument as the id of a row of the bound tenant; `kind` is the repository's name for it."""

    kind: str


@dataclass(frozen=True, slots=True)
class Secret:
    """Marks an argument that nobody but the actor may see: see runs/secrets.py."""


EmailClientId = Annotated[str, Resource("email_client")]
FolderId = Annotated[str, Resource("email_folder")]
EmailId = Annotated[str, Resource("email_message")]
AttachmentId = Annotated[str, Resource("email_attachment")]
OutboundEmailId = Annotated[str, Resource("outbound_email")]
SecretText = Annotated[str, Secret(), Field(min_length=1, max_length=4096, json_schema_extra={"format": "password", "writeOnly": True})]


class UnknownTaskError(NotFoundError):
    """There is no task of that name."""

    code = "unknown_task"


def task_names(broker: Broker | None = None) -> list[str]:
    """The names of all tasks."""
    return sorted((broker or get_broker()).actors)


def get_task(name: str, broker: Broker | None = None) -> Actor[..., Any]:
    """Raises UnknownTaskError, naming the nearest."""
    actors = (broker or get_broker()).actors
    if name not in actors:
        raise UnknownTaskError(f"There is no task named {name[:80]!r}. Known tasks: {', '.join(sorted(actors))}.")
    return actors[name]


@cache
def arguments_model(actor: Actor[..., Any]) -> type[BaseModel]:
    """A Pydantic model of the actor's arguments: strict types, nothing missing, nothing extra."""
    hints = get_type_hints(actor.fn, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(actor.fn).parameters.items():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints[name], default)
    return create_model(f"{actor.actor_name}_arguments", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def check_arguments(actor: Actor[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with defaults filled in. Raises InvalidInputError with one sentence naming the first that is wrong."""
    try:
        checked = arguments_model(actor).model_validate(arguments)
    except ValidationError as error:
        raise InvalidInputError(_sentence(actor, error)) from None
    values = checked.model_dump(mode="json")
    if b"\\u0000" in orjson.dumps(values):
        raise InvalidInputError(f"{actor.actor_name}: the arguments hold a NUL character, which cannot be stored; remove it.")
    return values


def resources_in(actor: Actor[..., Any], arguments: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(argument, kind, id) for every argument that is the id of a tenant's row, lists of ids included."""
    found = []
    for name, kind in _resources(actor):
        value = arguments.get(name)
        if value is not None:
            found += [(name, kind, item) for item in (value if isinstance(value, list) else [value])]
    return found


def has_resources(actor: Actor[..., Any]) -> bool:
    """Whether an argument is the id of a tenant's row, to be looked up in the tenant's own session."""
    return bool(_resources(actor))


@cache
def secrets_of(actor: Actor[..., Any]) -> tuple[str, ...]:
    """The names of the actor's secret arguments."""
    hints = get_type_hints(actor.fn, include_extras=True).items()
    return tuple(name for name, hint in hints if name != "return" and _is_marked(hint, Secret))


@cache
def parameters_of(actor: Actor[..., Any]) -> tuple[str, ...]:
    """The names of the actor's arguments in their order."""
    return tuple(inspect.signature(actor.fn).parameters)


@cache
def _resources(actor: Actor[..., Any]) -> list[tuple[str, str]]:
    kinds = {name: _resource_kind(hint) for name, hint in get_type_hints(actor.fn, include_extras=True).items() if name != "return"}
    return [(name, kind) for name, kind in kinds.items() if kind is not None]


def _is_marked(hint: Any, mark: type) -> bool:
    return any(isinstance(each, mark) or _is_marked(each, mark) for each in get_args(hint))


def _resource_kind(hint: Any) -> str | None:
    if get_origin(hint) is Annotated:
        for mark in get_args(hint)[1:]:
            if isinstance(mark, Resource):
                return mark.kind
    for inner in get_args(hint):
        kind = _resource_kind(inner)
        if kind is not None:
            return kind
    return None


def _sentence(actor: Actor[..., Any], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    known = ", ".join(parameters_of(actor))
    if first["type"] == "missing":
        return f"{actor.actor_name} needs the argument {name}."
    if first["type"] == "extra_forbidden":
        return f"{actor.actor_name} has no argument {name[:80]!r}; it takes: {known or 'none'}."
    return f"{actor.actor_name}: the argument {name} is wrong: {first['msg'][0].lower()}{first['msg'][1:]}."
