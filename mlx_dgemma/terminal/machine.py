"""Describes the machine: what it is, how warm, and which code runs on it.

What the system does not tell is None; `missing` says why. Nothing here names the machine or its user.
"""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ..version import __version__

QUERY = ("name", "driver_version", "power.draw", "power.limit", "temperature.gpu", "clocks.sm", "clocks.mem",
         "clocks_event_reasons.active")  # fmt: skip
REASONS = {
    "thermal": "there is no pmset on this system",
    "nvidia": "there is no nvidia-smi, or it does not answer",
}


def _output(*command: str) -> str | None:
    """Runs a command that changes nothing; None where there is none, it fails, or it prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip() or None


def revision() -> str | None:
    """Returns the commit of this package's checkout, "-dirty" where it was changed; None for an installed wheel."""
    git = ("git", "-C", str(Path(__file__).parent))
    tracked = _output(*git, "ls-files", "--error-unmatch", "machine.py")
    return tracked and _output(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def versions() -> dict[str, str]:
    installed = {"mlx_dgemma": __version__, "python": platform.python_version()}
    for name in ("numpy", "mlx", "mlx-lm", "torch", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def state() -> dict[str, Any]:
    """Reads heat and power: `thermal` as `pmset -g therm` prints it, `nvidia` a GPU each, in W, C and MHz."""
    gpus = _output("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    nvidia = gpus and [dict(zip(QUERY, line.split(", "), strict=False)) for line in gpus.splitlines()]
    return {"thermal": _output("pmset", "-g", "therm"), "nvidia": nvidia}


def missing(state: dict[str, Any]) -> dict[str, str]:
    """Says why what is None in `state` is."""
    return {name: reason for name, reason in REASONS.items() if state[name] is None}


def describe(device: dict[str, Any] | str) -> dict[str, Any]:
    """Puts the backend's account of its `device` beside the machine's."""
    return {"system": platform.platform(), "cores": psutil.cpu_count(), "memory": psutil.virtual_memory().total,
            "device": device}  # fmt: skip
