"""Kubernetes' objects as schemas: the models of its Python client, which are pydantic's.

Needs `pip install --target FOLDER kubernetes`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def kubernetes(folder: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, schema) of each of the classes, such as V1Deployment. `folder` holds the package `kubernetes`."""
    sys.path.insert(0, str(folder))
    for name in names:
        module = importlib.import_module("kubernetes.client.models")
        yield name, getattr(module, name).model_json_schema()
