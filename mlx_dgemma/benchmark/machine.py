"""Describes the machine as it is now: what it is, how it is powered, how warm, and which code runs on it.

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
    """Runs a command that asks and changes nothing; None where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip() or None


def revision() -> dict[str, Any] | None:
    """Asks git about the checkout that this package lies in; None if it was installed from a wheel."""
    git = ("git", "-C", str(PACKAGE))
    if _output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changed = _output(*git, "status", "--porcelain") is not None
    return {"revision": _output(*git, "rev-parse", "HEAD"), "changed": changed}


def versions() -> dict[str, str]:
    from .. import __version__

    installed = {"mlx_dgemma": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("mlx", "mlx-lm", "torch", "transformers"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _power() -> str | None:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None or battery.power_plugged is None:
        return None
    return "mains" if battery.power_plugged else f"battery at {battery.percent:.0f} %"


def _celsius() -> float | None:
    import psutil

    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((sensor.current for group in sensors.values() for sensor in group), default=None)


def _nvidia() -> list[dict[str, str]] | None:
    """Returns one entry a GPU, values as the driver prints them: W, C, MHz."""
    output = _output("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    return output and [dict(zip(QUERY, line.split(", "), strict=False)) for line in output.splitlines()]


REASONS = {  # probe -> why it may know nothing
    "power": "no battery, or the system does not tell what feeds the machine",
    "thermal": "there is no pmset on this system",
    "celsius": "the system shows no temperature sensors",
    "nvidia": "there is no nvidia-smi, or it does not answer",
}


def state() -> dict[str, Any]:
    """Reads power and heat: `thermal` as `pmset -g therm` prints it, `celsius` of the hottest sensor."""
    thermal = _output("pmset", "-g", "therm")
    return {"power": _power(), "thermal": thermal, "celsius": _celsius(), "nvidia": _nvidia()}


def missing(state: dict[str, Any]) -> dict[str, str]:
    """Says why what is None in `state` is."""
    return {name: reason for name, reason in REASONS.items() if state[name] is None}


def describe(device: dict[str, Any]) -> dict[str, Any]:
    """Puts the backend's account of its `device` beside the machine's."""
    import psutil

    mac = platform.mac_ver()[0]
    return {
        "system": f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "device": device,
    }
