"""MLX's path of a GPU, taken on the CPU."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_dgemma.mlx_backend import family


def as_on_a_gpu(request: pytest.FixtureRequest, path: family.Family = family.GPU) -> None:
    """For as long as the fixture of `request` lives. Nothing is compiled: each function would call a C++ compiler."""
    patch = pytest.MonkeyPatch()
    patch.setattr(family, "current", lambda: path)
    mx.disable_compile()
    request.addfinalizer(mx.enable_compile)
    request.addfinalizer(patch.undo)
