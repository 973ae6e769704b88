"""The language of templates: Jinja2, cut down to what a letter needs, so that a tenant's template can do nothing else.

Text, variables, `if`, a few filters and the blocks of the layout. No loops, attributes, calls, arithmetic or macros: whatever is written,
rendering takes a time and a size that the template's own length bounds. The sandbox stands behind that as a second wall.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import DictLoader, StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEnvironment
from jinja2.tests import TESTS

from core.errors import InvalidInputError
from mail.templates.catalogue import FILES

LARGEST_OUTPUT = 2**20
"""Characters of a rendered part."""
LAYOUT = "layout.html"
DEEPEST = 40
KNOWN_FILTERS = ("capitalize", "d", "default", "e", "escape", "length", "lower", "title", "trim", "truncate", "upper", "urlencode")
KNOWN_TESTS = ("defined", "none")
ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr, nodes.Filter, nodes.Test,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Block, nodes.Extends, nodes.Keyword, nodes.Call,
)  # fmt: skip
WHAT_IT_IS: dict[type[nodes.Node], str] = {
    nodes.For: "loops",
    nodes.Getattr: "attributes",
    nodes.Getitem: "attributes or items",
    nodes.BinExpr: "arithmetic",
    nodes.Call: "calls (only super() in a block)",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Macro: "macros",
    nodes.Scope: "autoescape",
    nodes.ScopedEvalContextModifier: "autoescape",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
}
UNDEFINED = re.compile(r"'(\w+)' is undefined")


class TemplateRefused(InvalidInputError):  # noqa: N818  (says what happened)
    """A template, or what it was given, cannot become a mail; the sentence names the part and the line."""

    code = "template"


class MissingVariable(TemplateRefused):
    """A template uses something that there is no value for. `name` is the variable's."""

    code = "template_variable"

    def __init__(self, name: str) -> None:
        super().__init__(f"it needs the variable {name}, which has no value")
        self.name = name


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a template, checked and ready. `names` are the variables that it mentions."""

    template: Template
    names: frozenset[str]

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises MissingVariable, and TemplateRefused for one that comes out too large."""
        pieces: list[str] = []
        size = 0
        try:
            for piece in self.template.generate(dict(values)):
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST_OUTPUT:
                    raise TemplateRefused(f"it becomes larger than {LARGEST_OUTPUT // 1024} KiB")
        except UndefinedError as error:
            found = UNDEFINED.search(str(error))
            raise MissingVariable(found[1] if found else "?") from None
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise TemplateRefused(f"it cannot be rendered ({type(error).__name__})") from None
        return "".join(pieces)


def _environment(*, is_html: bool) -> SandboxedEnvironment:
    layout = {LAYOUT: (FILES / LAYOUT).read_text()} if is_html else {}
    environment = SandboxedEnvironment(
        loader=DictLoader(layout),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.clear()
    environment.filters = {name: FILTERS[name] for name in KNOWN_FILTERS}
    environment.tests = {name: TESTS[name] for name in KNOWN_TESTS}
    return environment


ENVIRONMENTS = {is_html: _environment(is_html=is_html) for is_html in (False, True)}


@lru_cache(maxsize=256)
def read_part(source: str, *, is_html: bool) -> Part:
    """Checks and compiles. Raises TemplateRefused saying what is wrong and in which line."""
    environment = ENVIRONMENTS[is_html]
    try:
        tree = environment.parse(source)
        names = frozenset(_names(tree, is_html=is_html))
        template = Template.from_code(environment, environment.compile(tree), {}, None)
    except TemplateSyntaxError as error:
        raise TemplateRefused(f"line {error.lineno}: {_plain(error.message or 'it is not well-formed')}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
        raise TemplateRefused("it is nested too deeply") from None
    return Part(template, names)


def _names(tree: nodes.Template, *, is_html: bool) -> Iterator[str]:
    """The variables, after a look at everything else."""
    for node, depth in _walk(tree):
        if depth > DEEPEST:
            raise TemplateRefused(f"line {node.lineno or 1}: it is nested too deeply")
        if isinstance(node, nodes.Extends):
            _check_extends(node, is_html=is_html)
        elif not isinstance(node, ALLOWED) or (isinstance(node, nodes.Call) and not _is_super(node)):
            kind = next((words for cls, words in WHAT_IT_IS.items() if isinstance(node, cls)), type(node).__name__.lower())
            raise TemplateRefused(f"line {node.lineno or 1}: templates may not use {kind}")
        elif isinstance(node, nodes.Name) and node.name != "super":
            yield node.name


def _walk(tree: nodes.Node) -> Iterator[tuple[nodes.Node, int]]:
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in node.iter_child_nodes()]


def _check_extends(node: nodes.Extends, *, is_html: bool) -> None:
    if not is_html or not isinstance(node.template, nodes.Const) or node.template.value != LAYOUT:
        raise TemplateRefused(f'line {node.lineno}: only the HTML extends something, and only "{LAYOUT}"')


def _is_super(node: nodes.Call) -> bool:
    is_named = isinstance(node.node, nodes.Name) and node.node.name == "super"
    return is_named and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)


def _plain(message: str) -> str:
    text = " ".join(message.split())[:200].rstrip(".")
    return text[:1].lower() + text[1:]
