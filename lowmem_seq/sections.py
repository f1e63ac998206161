"""Sections of settings: plain values in, checked and frozen ones out, and all that is wrong named at once.

A section's fields have types and limits that msgspec knows, such as `Annotated[int, Meta(ge=1)]`. A function beside
a type, `Annotated[str, function]`, turns what is given into what the type is checked against. Of several sections,
`A | B`, one is chosen by their first field, a Literal of one value.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import inspect, structs

from lowmem_seq.errors import UsageError, nearest


class Section(msgspec.Struct, frozen=True):
    """Settings that belong together. A ValueError in `__post_init__` says what is wrong with them together."""

    def to_settings(self) -> dict[str, Any]:
        """Return the settings as nested dicts and lists, in the order they are declared in."""
        return {name: _plain(getattr(self, name)) for name in self.__struct_fields__}


AnySection = TypeVar("AnySection", bound=Section)


class Reader:
    """Makes sections of plain settings, field by field: msgspec alone would stop at the first fault."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        """One line each."""
        self.hint = ""
        """What helps with the first fault that something is known to help with."""
        self._whole: type[Section] | None = None

    def section(self, kind: type[AnySection], settings: object, name: str = "") -> AnySection | None:
        """Return the checked section, or None if anything in it is wrong; `name` is where it stands."""
        if not isinstance(settings, dict):
            self._note(f"{name or 'the settings'}: must be a section of settings (got {_shown(settings)})")
            return None
        self._whole = self._whole or kind
        place = f"{name}." if name else ""
        fields = {field.name: field for field in structs.fields(kind)}
        before = len(self.faults)
        values = {}
        for key, field in fields.items():
            if key in settings:
                values[key] = self._value(field.type, settings[key], place + key)
            elif field.required:
                self._note(f"{place}{key}: is missing")
        for key in settings:
            if key not in fields:
                elsewhere = [path for path in keys_of(self._whole) if path.split(".")[-1] == key]
                hint = f"did you mean '{elsewhere[0]}'?" if elsewhere else nearest(str(key), list(fields))
                hint = hint or f"known here: {', '.join(fields)}"
                self._note(f"there is no setting {f'{place}{key}'!r}", hint)
        if len(self.faults) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            self._note(f"{name or 'the settings'}: {error}")
            return None

    def _note(self, fault: str, hint: str = "") -> None:
        self.faults.append(fault)
        self.hint = self.hint or hint

    def _value(self, kind: Any, given: Any, name: str) -> Any:
        """Return what a field of this type is to hold, or None if that is wrong."""
        sections = [part for part in get_args(kind) or (kind,) if _is_section(part)]
        if sections:
            chosen = self._chosen(sections, given, name)
            return chosen and self.section(chosen, given, name)
        try:
            for read in getattr(kind, "__metadata__", ()):
                if callable(read):
                    given = read(given)
            value = msgspec.convert(given, kind, strict=False)  # numbers as text too: YAML 1.1 takes 1e-3 for text
        except UsageError as error:
            self._note(f"{name}: {error.message}", error.hint)
        except msgspec.ValidationError:
            self._note(f"{name}: must be {_in_words(inspect.type_info(kind))} (got {_shown(given)})")
        else:
            if not isinstance(value, float) or math.isfinite(value):
                return value
            self._note(f"{name}: must be a finite number (got {value})")
        return None

    def _chosen(self, sections: list[type[Section]], given: object, name: str) -> type[Section] | None:
        if len(sections) == 1 or not isinstance(given, dict):
            return sections[0]
        firsts = [structs.fields(section)[0] for section in sections]
        tag = given.get(firsts[0].name)
        for section, first in zip(sections, firsts, strict=True):
            if get_args(first.type) == (tag,):
                return section
        known = _either([get_args(first.type)[0] for first in firsts])
        self._note(f"{name}.{firsts[0].name}: must be {known} (got {_shown(tag)})")
        return None


def keys_of(kind: type[Section], place: str = "") -> Iterator[str]:
    """Return the keys of a section and of those inside it, as `--set` takes them: also those of each choice."""
    for field in structs.fields(kind):
        inside = [part for part in get_args(field.type) or (field.type,) if _is_section(part)]
        if not inside:
            yield place + field.name
        yield from dict.fromkeys(key for part in inside for key in keys_of(part, f"{place}{field.name}."))


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_settings()
    return list(value) if isinstance(value, tuple) else value


def _shown(given: object) -> str:
    try:
        return reprlib.repr(given)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _either(values: Sequence[object]) -> str:
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last


def _in_words(kind: inspect.Type) -> str:
    """What a type takes, for people: "a whole number, at least 1"."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            limits = {"at least": kind.ge, "above": kind.gt, "at most": kind.le, "below": kind.lt}
            what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return ", ".join([what, *(f"{word} {limit}" for word, limit in limits.items() if limit is not None)])
        case inspect.StrType():
            return "a text that is not empty" if kind.min_length else "a text"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.LiteralType():
            return _either(kind.values)
        case inspect.VarTupleType():
            return f"a list, each entry {_in_words(kind.item_type)}"
        case inspect.UnionType():
            return ", or ".join(_in_words(part) for part in kind.types)
    raise AssertionError(f"no field has the type {kind}")
