"""Where a schema's references lead: by JSON pointer, to an anchor, or to an `$id` of the same file; and the schema with
what they lead to in their place, as chat templates can print it."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import Mistake

DEEPEST = 1000  # parts of a path
MOST_OBJECTS = 10_000  # of a schema without references: it can be exponentially longer
DEFINITIONS = ("$defs", "definitions")
VALUES = {"enum", "const", "default", "examples", "example"}  # no schemas inside


class References:
    """The schemas of one file, and where each stands."""

    def __init__(self, root: Any):
        self.root = root
        self.places: dict[int, tuple] = {}  # id of each object -> its path
        self.bases: dict[int, str] = {}  # and the URI from which its references count
        self.named: dict[str, Any] = {"": root}  # URI, with an anchor -> schema
        draft = root.get("$schema", "") if isinstance(root, dict) else ""
        self.own_name = "id" if "draft-04" in draft else "$id"
        for schema, path, base in _walk(root, (), "", self.own_name):
            self.places[id(schema)], self.bases[id(schema)] = path, base
            if isinstance(identifier := schema.get(self.own_name), str):
                self.named.setdefault(base, schema)
                if identifier.startswith("#"):  # an anchor, before draft 2019-09
                    self.named.setdefault(urljoin(base, identifier), schema)
            for anchor in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(anchor), str):
                    self.named.setdefault(f"{base}#{schema[anchor]}", schema)

    def target(self, reference: str, schema: dict) -> Any:
        """Returns the schema that `schema` refers to. Mistake where it is not in the file."""
        base = self.bases.get(id(schema), "")
        address, fragment = urldefrag(base + reference if reference.startswith("#") else urljoin(base, reference))
        if address not in self.named:
            raise Mistake(f"{reference} is not in this file; copy it here")
        if f"{address}#{fragment}" in self.named:
            return self.named[f"{address}#{fragment}"]
        target, parts = self.named[address], unquote(fragment).split("/")
        if parts[0]:
            raise Mistake(f"{reference} is not there")
        try:
            for part in parts[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                target = target[int(name)] if isinstance(target, list) else target[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise Mistake(f"{reference} is not there") from None
        if not isinstance(target, dict | bool):
            raise Mistake(f"{reference} is no schema")
        return target

    def circular(self) -> set[int]:
        """Returns the ids of the schemas that are referred to from inside themselves."""
        inside: dict[int, list[dict]] = {}  # what each schema that is referred to refers to
        waiting = [*self._referred(self.root)]
        while waiting:
            schema = waiting.pop()
            if id(schema) not in inside:
                inside[id(schema)] = [*self._referred(schema)]
                waiting += inside[id(schema)]
        return {start for start in inside if start in _reached(start, inside)}

    def _referred(self, schema: Any) -> Iterator[dict]:
        """Yields the schemas that are referred to inside `schema`."""
        for inner, _, _ in _walk(schema, (), "", self.own_name, DEFINITIONS):
            if not isinstance(inner.get("$ref"), str):
                continue
            with suppress(Mistake):  # it is raised where the schema is read, with its path
                if isinstance(found := self.target(inner["$ref"], inner), dict):
                    yield found


def without_references(schema: dict) -> dict:
    """Returns the schema with what it refers to in its place; itself where that is not in it, or too much. What refers
    to itself is cut there: its type remains."""
    try:
        return _Inlined(References(schema)).value(schema, ())
    except (Mistake, RecursionError):
        return schema


class _Inlined:
    def __init__(self, references: References):
        self.references, self.left = references, MOST_OBJECTS

    def value(self, value: Any, around: tuple[int, ...], named: bool = False) -> Any:
        """`around`: the ids of what is being put in place; `named`: the keys of `value` are names, no keywords."""
        if isinstance(value, list):
            return [self.value(item, around) for item in value]
        if not isinstance(value, dict):
            return value
        self.left -= 1
        if self.left < 0:
            raise Mistake("too much")
        if named or not isinstance(value.get("$ref"), str):
            drop = () if named else DEFINITIONS
            return {
                name: item
                if name in VALUES and not named
                else self.value(item, around, not named and name == "properties")
                for name, item in value.items()
                if name not in drop
            }
        target, beside = self.references.target(value["$ref"], value), {n: v for n, v in value.items() if n != "$ref"}
        if target is self.references.root or id(target) in around or isinstance(target, bool):
            kind = target.get("type") if isinstance(target, dict) else None
            return ({"type": kind} if kind else {}) | self.value(beside, around)
        return self.value(target, (*around, id(target))) | self.value(beside, around)


def _reached(start: int, inside: dict[int, list[dict]]) -> set[int]:
    reached: set[int] = set()
    waiting = [start]
    while waiting:
        new = {id(schema) for schema in inside[waiting.pop()]} - reached
        reached |= new
        waiting += new
    return reached


def _walk(
    value: Any, path: tuple, base: str, own_name: str, without: Iterable[str] = ()
) -> Iterator[tuple[dict, tuple, str]]:
    """Yields every object, where it stands, and its base URI."""
    waiting = [(value, path, base)]
    while waiting:
        value, path, base = waiting.pop()
        if len(path) > DEEPEST:
            raise RecursionError
        if isinstance(value, dict):
            identifier = value.get(own_name)
            if isinstance(identifier, str) and not identifier.startswith("#"):
                base = urldefrag(urljoin(base, identifier))[0]
            yield value, path, base
            named = path[-1:] == ("properties",)
            inner = [each for each in value.items() if named or (each[0] not in VALUES and each[0] not in without)]
        else:
            inner = enumerate(value) if isinstance(value, list) else ()
        waiting += [(item, (*path, name), base) for name, item in inner if isinstance(item, dict | list)]
