"""Float32 on the CPU device, wherever the tests run: bounds and equality to the bit are stated for that.

A machine with CUDA may have no MLX: a test that imports it is skipped there, and says so."""

import gc
import os
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

gc.disable()  # until all tests are known: see below
os.environ["MLX_ENABLE_TF32"] = "0"  # before mlx is imported
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the models are small: a second thread mostly waits
    os.environ.setdefault(name, "1")
if not Path("/proc/driver/nvidia/version").exists() and not shutil.which("nvidia-smi"):
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported, which torch and transformers do

try:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
except ModuleNotFoundError:
    mx = None

from terminals import endless, run  # noqa: E402, F401


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    """Chats and what was typed are kept in a folder of the test's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.hookimpl(tryfirst=True)  # before -m leaves any out
def pytest_collection_modifyitems(items):
    """Of a test that is marked `sample(n)`, all but n cases, evenly spread, are slow."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            cases[item.path, item.function].append(item)
    for same in cases.values():
        count = min(len(same), same[0].get_closest_marker("sample").args[0])
        quick = {i * len(same) // count for i in range(count)}
        for i, item in enumerate(same):
            if i not in quick:
                item.add_marker("slow")


def pytest_collection_finish():
    gc.freeze()  # thousands of tests, torch and transformers: no later collection walks them
    gc.enable()


MISSING = "No module named 'mlx"


def _skip(report, path) -> None:
    report.outcome, report.longrepr = "skipped", (str(path), 1, "Skipped: needs MLX: pip install 'mlx[cpu]'")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if mx is None and report.failed and MISSING in str(report.longrepr):
        _skip(report, collector.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    error = call.excinfo and call.excinfo.value
    if mx is None and report.failed and any(MISSING in str(e) for e in (error, error.__cause__, error.__context__)):
        _skip(report, item.path)
    return report
