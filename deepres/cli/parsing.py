"""Parsing of a command's options from its dataclass, with helps that say what the absence of an option means.

The comment beside a field is its help. Of a field whose default is ``None``, or empty, the help ends in brackets with what then
holds: ``side of the input in pixels [the images' own]`` is printed as ``side of the input in pixels (default: the images' own)``.
Without brackets no default is printed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import DisallowNone, PositionalMetavarFromFieldName, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from deepres.errors import DeepresError
from deepres.models.options import BUILDERS

_RULES = ConstructorRegistry()
_IN_BRACKETS = re.compile(r"\s*\[([^][]+)\]$")
_BUILDER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
Help = Callable[[], str | None] | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuilderOption:
    """Leave to run code of the user's own."""

    # function of yours that a run or file of weights may name as the builder of its network; several with commas between [none]
    builder: Annotated[str | None, arg(metavar="MODULE:FUNCTION")] = None

    def allow_builders(self) -> None:
        """Allow the builders in this process and those that it starts. Raises ``DeepresError`` for what names no function."""
        given = [name.strip() for name in (self.builder or "").split(",") if name.strip()]
        for name in given:
            if not _BUILDER.fullmatch(name):
                raise DeepresError(f"--builder is MODULE:FUNCTION, such as my_nets:build, not {name!r}")
        if given:
            os.environ[BUILDERS] = ",".join(filter(None, [os.environ.get(BUILDERS, ""), *given]))


def parse(kind: Any, prog: str, args: Sequence[str]) -> Any:
    """The command ``kind``, a dataclass or a union of them, with the options in ``args``. Exits with 2 for those that do not parse."""
    with _RULES:
        return tyro.cli(kind, prog=prog, args=args, config=(DisallowNone, PositionalMetavarFromFieldName))


def _text(given: Help) -> str:
    return (given() if callable(given) else given) or ""


def _explained(field: StructFieldSpec) -> StructFieldSpec:
    """The field with the meaning of its absence in place of its default, if that is ``None`` or empty."""
    if field.default is not None and field.default != ():
        return field

    def says(_: str) -> str:
        found = _IN_BRACKETS.search(_text(field.helptext))
        return f"(default: {found[1]})" if found else ""

    return dataclasses.replace(
        field,
        type=Annotated[field.type, arg(help_behavior_hint=says)],  # type: ignore[arg-type]
        helptext=lambda: _IN_BRACKETS.sub("", _text(field.helptext)),
    )


@_RULES.struct_rule
def _explain_absence(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tyro's own rule for a dataclass, with the fields explained."""
    if not dataclasses.is_dataclass(info.type) or info.type in _under_way:
        return None
    _under_way.append(info.type)  # so that the second question, for tyro's own rule, passes this one over
    try:
        found = ConstructorRegistry.get_struct_spec(info)
    finally:
        _under_way.remove(info.type)
    if not isinstance(found, StructConstructorSpec):
        return None
    return dataclasses.replace(found, fields=tuple(map(_explained, found.fields)))


_under_way: list[Any] = []
