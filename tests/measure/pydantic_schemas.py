"""Schemas of 51 kinds of fields, as pydantic writes them. Needs pydantic, which the extra `test` has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float


def pydantic() -> Iterator[tuple[str, Any]]:
    """(kind, schema) each."""
    from pydantic import AnyUrl, Base64Bytes, BaseModel, ByteSize, ConfigDict, Field, Json, SecretStr, create_model
    from typing_extensions import TypedDict

    class Inner(BaseModel):
        name: str
        size: int = 3

    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int

    class Dog(BaseModel):
        kind: Literal["dog"]
        name: str

    class Address(TypedDict):
        street: str
        number: int

    class Node(BaseModel):
        value: str
        children: list[Node] = []

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        name: str

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str

    Node.model_rebuild(_types_namespace={"Node": Node})
    fields = {
        "str": str,
        "int": int,
        "float": float,
        "bool": bool,
        "None": None,
        "bytes": bytes,
        "date": date,
        "datetime": datetime,
        "time": time,
        "timedelta": timedelta,
        "UUID": UUID,
        "Decimal": Decimal,
        "Enum": Colour,
        "IntEnum": Level,
        "Literal": Literal["a", 1, None],
        "Optional": int | None,
        "Union": int | str,
        "list": list[int],
        "list, bare": list,
        "dict": dict[str, int],
        "dict, bare": dict,
        "dict of models": dict[str, Inner],
        "dict of int": dict[int, str],
        "tuple": tuple[int, str],
        "tuple of any length": tuple[int, ...],
        "set of enum": set[Colour],
        "set of int": set[int],
        "deque": deque[int],
        "model": Inner,
        "optional model": Inner | None,
        "list of models": list[Inner],
        "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")],
        "recursive": Node,
        "Any": Any,
        "NamedTuple": Point,
        "TypedDict": Address,
        "bounded int": Annotated[int, Field(ge=0, lt=100)],
        "bounded str": Annotated[str, Field(min_length=2, max_length=9)],
        "pattern": Annotated[str, Field(pattern=r"^[A-Z]{2}-\d+$")],
        "multiple_of": Annotated[int, Field(multiple_of=5)],
        "multiple_of, float": Annotated[float, Field(multiple_of=0.5)],
        "AnyUrl": AnyUrl,
        "SecretStr": SecretStr,
        "IPv4Address": IPv4Address,
        "Path": Path,
        "Json": Json,
        "ByteSize": ByteSize,
        "Base64Bytes": Base64Bytes,
        "extra forbidden": Closed,
        "extra allowed": Open,
        "bounded list": Annotated[list[str], Field(min_length=1, max_length=3)],
    }
    for name, kind in fields.items():
        yield name, create_model("Model", field=(kind, ...)).model_json_schema()
