"""Records as JSON: what their types say is what may be in them."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from anemos.log import FAILED, die

Kind = TypeVar("Kind")
Kinds = tuple[Any, ...]  # what stands between the brackets of a type
LARGE = 2**63  # beyond all sizes and times
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # JSON can say it, no file and no argument can


def text(record: object) -> str:
    """RECORD, or lists and dictionaries of records, as JSON in one line."""
    return json.dumps(record, default=asdict)


def load(
    kind: type[Kind], given: str | bytes, what: str, hint: str = "", status: int = FAILED
) -> Kind:
    """The JSON text GIVEN as a KIND. Raises Failure that names WHAT, and the field that is wrong:
    never its value, which may be a secret.
    """
    try:
        return parse(kind, given)
    except ValueError as error:
        die(f"{what}: {error}", hint=hint, status=status)


def parse(kind: type[Kind], given: str | bytes) -> Kind:
    """The same. Raises ValueError."""
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    made: Kind = make(kind, value, "it")
    return made


def make(kind: Any, value: object, where: str) -> Any:
    """VALUE, as JSON has it at WHERE, as a KIND: a dataclass, NamedTuple or TypedDict, or made of
    those."""
    if is_dataclass(kind) or is_typeddict(kind):
        return record(kind, value, where)
    if maker := MAKERS.get(get_origin(kind)):
        return maker(get_args(kind), value, where)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        return kind(*row((*get_type_hints(kind).values(),), value, where))
    if kind is float and type(value) is int and abs(value) < LARGE:
        return float(value)
    if kind is Any:
        return value
    if type(value) is not kind or nonsense(value):
        raise ValueError(f"{where} makes no sense")
    return value


def nonsense(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) >= LARGE
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and bool(NO_TEXT.search(value))


def record(kind: Any, value: object, where: str) -> Any:
    """Fields that KIND does not know are left out: another version of Anemos has written them."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    if missing := needed(kind) - value.keys():
        raise ValueError(f"{where} has no {', '.join(sorted(missing))}")
    types = get_type_hints(kind)
    return kind(
        **{name: make(types[name], value[name], name) for name in types.keys() & value.keys()}
    )


def needed(kind: Any) -> set[str]:
    if is_typeddict(kind):
        return set(kind.__required_keys__)
    return {e.name for e in fields(kind) if {e.default, e.default_factory} == {MISSING}}


def either(kinds: Kinds, value: object, where: str) -> Any:
    """As the first of KINDS that it can be."""
    for kind in kinds[:-1]:
        try:
            return make(kind, value, where)
        except ValueError:
            continue
    return make(kinds[-1], value, where)


def choice(values: Kinds, value: object, where: str) -> object:
    if value not in values:
        raise ValueError(f"{where} makes no sense")
    return value


def rows(kinds: Kinds, value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is no list")
    return [make(kinds[0], each, where) for each in value]


def row(kinds: Kinds, value: object, where: str) -> tuple[Any, ...]:
    if kinds[-1] is ...:
        return tuple(rows(kinds, value, where))
    if not isinstance(value, list) or len(value) != len(kinds):
        raise ValueError(f"{where} has not {len(kinds)} parts")
    return tuple(make(kind, each, where) for kind, each in zip(kinds, value, strict=True))


def table(kinds: Kinds, value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    return {name: make(kinds[1], each, where) for name, each in value.items()}


MAKERS: dict[object, Callable[[Kinds, object, str], Any]] = {
    Union: either,
    UnionType: either,
    Literal: choice,
    list: rows,
    Sequence: rows,
    tuple: row,
    dict: table,
    Mapping: table,
}
