"""The machine as it is now: what it is, how it is powered, how warm, and which code runs on it.

What the system does not tell is None; `missing` says why. Nothing here names the machine or its user.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = Path(__file__).parent.parent
QUERY = ("name", "driver_version", "power.draw", "power.limit", "temperature.gpu", "clocks.sm", "clocks.mem",
         "clocks_event_reasons.active")  # fmt: skip


def _output(*command: str) -> str | None:
    """Of a command that asks and changes nothing; None where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip() or None


def revision() -> dict[str, Any] | None:
    """Of the checkout that this package lies in; None if it was installed from a wheel."""
    git = ("git", "-C", str(PACKAGE))
    if _output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {
        "revision": _output(*git, "rev-parse", "HEAD"),
        "changed": _output(*git, "status", "--porcelain") is not None,
    }


def versions() -> dict[str, str]:
    from .. import __version__

    found = {"mlx_dgemma": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("mlx", "mlx-lm", "torch", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _nvidia() -> list[dict[str, str]] | None:
    """One entry a GPU, values as the driver prints them: W, C, MHz."""
    told = _output("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    return told and [
        dict(zip(QUERY, (value.strip() for value in line.split(",")), strict=False)) for line in told.splitlines()
    ]


def _mains() -> str | None:
    """ "mains", "battery" with its charge, or None where no battery is known."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None or battery.power_plugged is None:
        return None
    return "mains" if battery.power_plugged else f"battery at {battery.percent:.0f} %"


def _hottest() -> float | None:
    import psutil

    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((one.current for group in sensors.values() for one in group), default=None)


def state() -> dict[str, Any]:
    """Power and heat, now. `thermal` is what `pmset -g therm` says, `nvidia` what nvidia-smi does, `celsius` of the
    hottest sensor."""
    return {
        "power": _mains(),
        "thermal": _output("pmset", "-g", "therm"),
        "celsius": _hottest(),
        "nvidia": _nvidia(),
    }


def missing(state: dict[str, Any]) -> dict[str, str]:
    """Why what is None in `state` is."""
    reasons = {
        "power": "no battery, or the system does not tell what feeds the machine",
        "thermal": "there is no pmset on this system",
        "celsius": "the system shows no temperature sensors",
        "nvidia": "there is no nvidia-smi, or it does not answer",
    }
    return {name: reason for name, reason in reasons.items() if state[name] is None}


def describe(device: dict[str, Any]) -> dict[str, Any]:
    """`device` is the backend's own account."""
    import psutil

    mac = platform.mac_ver()[0]
    return {
        "system": f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "device": device,
    }
