"""Every error that the package can tell a user, read from its source: docs/reference/errors.md.

An error is made where it is raised, from a text with values in it, so the source is read as text, not run. A value
becomes a name in braces; a text that was named first, or is given by a caller or made by a function, is looked up.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lowmem_seq import errors

PACKAGE = Path(errors.__file__).parent
MOST_LOOK_UPS = 3
"""Of a text that is named by a name that is named by a name."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
KNOWN_TEXTS = {"resume_command": "lowmem-seq resume RUN_DIR", "nearest": "did you mean '...'?"}
FORMATTERS = ("format_bytes", "format_seconds", "str", "repr", "join", "quote", "fspath", "strip", "map")
"""Functions that leave a value what it is, for people."""


@dataclass(frozen=True)
class Told:
    """One message of one error."""

    file: str
    kind: str
    exit_code: int
    message: str
    hint: str
    """Empty where there is none."""


@dataclass(frozen=True)
class Place:
    """Where an expression stands: its file, and the function around it."""

    file: Path
    function: Function | None
    depth: int = 0


class Source:
    """The package as syntax trees, with what is looked up in them."""

    def __init__(self) -> None:
        paths = sorted(PACKAGE.rglob("*.py"))
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
        self.functions: dict[str, list[tuple[Path, Function]]] = {}
        self.constants: dict[str, dict[Path, ast.expr]] = {}
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self.functions.setdefault(node.name, []).append((path, node))
            for line in tree.body:
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                    self.constants.setdefault(line.targets[0].id, {})[path] = line.value
        self.kinds = {kind.__name__: kind.exit_code for kind in errors.ERRORS_BY_EXIT_CODE.values()}
        self.kinds[errors.LowmemSeqError.__name__] = errors.LowmemSeqError.exit_code
        self.usual_hints: dict[str, ast.expr] = {}
        self._find_kinds_of_rooms()

    def _find_kinds_of_rooms(self) -> None:
        """Take in the errors that a room makes a kind of its own of, with the hint that all of them have."""
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if not isinstance(node, ast.ClassDef) or node.name in self.kinds:
                    continue
                above = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in self.kinds]
                if above:
                    self.kinds[node.name] = self.kinds[above[0]]
                    for part in node.body:
                        if isinstance(part, Function) and part.args.defaults:
                            self.usual_hints[node.name] = part.args.defaults[-1]

    def errors(self) -> Iterator[Told]:
        """Every error that is made in the package, by file and line."""
        for path, tree in self.trees.items():
            for call, function in _calls(tree, None):
                if not isinstance(call.func, ast.Name) or call.func.id not in self.kinds or not call.args:
                    continue
                kind, place = call.func.id, Place(path, function)
                hint = _argument(call, 1, "hint") or self.usual_hints.get(kind)
                hints = [] if hint is None else [text for text in self.texts(hint, place) if text]
                for message in self.texts(call.args[0], place):
                    file = path.relative_to(PACKAGE.parent).as_posix()
                    yield Told(file, kind, self.kinds[kind], message, " or: ".join(hints))

    def texts(self, node: ast.expr, place: Place) -> list[str]:
        """Return what an expression may come to, as texts with names in braces."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(self._part(part, place) for part in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [a + b for a in self.texts(left, place) for b in self.texts(right, place)]
            case ast.IfExp(body=body, orelse=other):
                return [*self.texts(body, place), *self.texts(other, place)]
            case ast.BoolOp(values=values):
                return list(chain.from_iterable(self.texts(value, place) for value in values))
            case ast.Call(func=ast.Attribute(value=inner, attr="strip")):
                return self.texts(inner, place)
        return self._looked_up(node, place) or ["{" + _name(node) + "}"]

    def _part(self, part: ast.expr, place: Place) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        assert isinstance(part, ast.FormattedValue)
        value = part.value
        known = self._constant(value.id, place) if isinstance(value, ast.Name) else None
        if isinstance(known, ast.Constant):
            return str(known.value)
        return self.texts(value, place)[0] if _called(value) in KNOWN_TEXTS else "{" + _name(value) + "}"

    def _constant(self, name: str, place: Place) -> ast.expr | None:
        """Return what a module calls by a name: this one, or else the only one."""
        known = self.constants.get(name, {})
        return known.get(place.file) or (next(iter(known.values())) if len(known) == 1 else None)

    def _looked_up(self, node: ast.expr, place: Place) -> list[str]:
        """Return the texts behind a name, a property or a call; none where that is not known."""
        if place.depth >= MOST_LOOK_UPS:
            return []
        deeper = Place(place.file, place.function, place.depth + 1)
        if isinstance(node, ast.Name):
            found = list(self._assigned(node.id, deeper)) or list(self._given(node.id, deeper))
            known = self._constant(node.id, place)
            return found or ([] if known is None else self.texts(known, deeper))
        name = _called(node)
        if name in KNOWN_TEXTS:
            return [KNOWN_TEXTS[name]]
        places = self.functions.get(name, [])
        makers = [one for one in places if one[0] == place.file] or places
        if len(makers) != 1:
            return []
        path, function = makers[0]
        returned = [one.value for one in ast.walk(function) if isinstance(one, ast.Return) and one.value]
        inside = Place(path, function, place.depth + 1)
        return list(dict.fromkeys(chain.from_iterable(self.texts(one, inside) for one in returned)))

    def _assigned(self, name: str, place: Place) -> Iterator[str]:
        """The texts that a name is given inside of its function."""
        for node in ast.walk(place.function) if place.function else ():
            if isinstance(node, ast.Assign) and any(getattr(one, "id", None) == name for one in node.targets):
                yield from self.texts(node.value, place)

    def _given(self, name: str, place: Place) -> Iterator[str]:
        """The texts that callers in the same file give for a parameter of a function."""
        if place.function is None:
            return
        names = [one.arg for one in place.function.args.args if one.arg != "self"]
        if name not in names:
            return
        defaults = place.function.args.defaults
        for parameter, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            if parameter == name:
                yield from self.texts(default, place)
        for call, around in _calls(self.trees[place.file], None):
            if _called(call) == place.function.name:
                argument = _argument(call, names.index(name), name)
                if argument is not None:
                    yield from self.texts(argument, Place(place.file, around, place.depth))


def _calls(node: ast.AST, function: Function | None) -> Iterator[tuple[ast.Call, Function | None]]:
    """Every call below a node, in the order of the lines, with the function that it stands in."""
    for below in ast.iter_child_nodes(node):
        if isinstance(below, ast.Call):
            yield below, function
        yield from _calls(below, below if isinstance(below, Function) else function)


def _called(node: ast.expr) -> str:
    """Return the name of the function or the property that an expression asks."""
    asked = node.func if isinstance(node, ast.Call) else node
    return str(getattr(asked, "attr", getattr(asked, "id", "")))


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    named = [one.value for one in call.keywords if one.arg == name]
    return named[0] if named else call.args[position] if len(call.args) > position else None


def _name(node: ast.expr) -> str:
    """Return a short name for a value, for people."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower().replace("_", " ")
        case ast.Call(args=[first, *_]) if _called(node) == "len":
            return f"number of {_name(first)}"
        case ast.Call(args=[first, *_]) if _called(node) in FORMATTERS:
            return _name(first)
        case ast.BinOp(left=ast.Attribute() as folder, op=ast.Div(), right=file):
            return f"{_name(folder)}/{_name(file)}"
        case ast.Call(func=func):
            return _name(func)
        case ast.Subscript(value=value, slice=ast.Constant(value=str(key))):
            return key.replace("_", " ")
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _name(value)
        case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
            return _name(value)
    return "..."
