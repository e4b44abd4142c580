"""Float32 on the CPU device, wherever the tests run: bounds and equality to the bit are stated for that."""

import os

os.environ["MLX_ENABLE_TF32"] = "0"  # before mlx is imported
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the models are small: a second thread mostly waits
    os.environ.setdefault(name, "1")

import mlx.core as mx  # noqa: E402
import pytest  # noqa: E402

mx.set_default_device(mx.cpu)

from terminals import endless, run  # noqa: E402, F401


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    """Chats and what was typed are kept in a folder of the test's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
