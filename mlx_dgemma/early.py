"""Ctrl-C while a command is still being imported ends it at once, without a traceback. In a library nothing changes."""

import os
import signal
import sys


def _is_command() -> bool:
    first, given = sys.argv[0], sys.orig_argv
    if first == "-m" and "-m" in given:  # Python is on its way to the module
        return given[given.index("-m") + 1].partition(".")[0] == "mlx_dgemma"
    return os.path.basename(first).partition(".")[0] == "mlx_dgemma"


def _leave(*_) -> None:
    os._exit(130)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)  # `terminal.process` takes it back
