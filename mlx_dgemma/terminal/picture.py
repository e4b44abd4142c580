"""Pictures by matplotlib, which is imported when one is asked for."""

from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import Mistake
from .command import check_target

FORMATS = (".png", ".svg", ".pdf")


def pyplot() -> ModuleType:
    """Imports matplotlib's, drawing into files."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise Mistake("--plot needs matplotlib, which is not installed: pip install 'mlx_dgemma[plot]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    return plt


def check(path: Path) -> None:
    """Raises Mistake if a picture could not be written there. Called before anything is measured."""
    pyplot()
    if path.suffix not in FORMATS:
        raise Mistake(f"--plot {path}: need a name that ends in one of {', '.join(FORMATS)}")
    check_target("--plot", path)


def save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Mistake(f"--plot {path} cannot be written: {error.strerror}") from None
    finally:
        pyplot().close(figure)
