"""What the user gave is wrong: the commands show these in one line and exit with 2. Any other error is ours, and a
traceback. The message names what was wrong, what was given, and what to do."""

from math import inf


class Mistake(ValueError):
    """A file, an option or a prompt that cannot be used."""


class NotFound(Mistake, FileNotFoundError):
    """Something that should be there is not."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoRoom(Mistake):
    """A prompt that is longer than the context."""


def reason(error: Exception) -> str:
    """Why a call of the system failed, in its words: without number and path."""
    return getattr(error, "strerror", None) or str(error)


def need(holds: bool, what: str, given: str) -> None:
    """Mistake unless it holds."""
    if not holds:
        raise Mistake(f"need {what}, got {given}")


def need_whole(name: str, value: object, least: int) -> None:
    """Mistake unless `value` is a whole number of at least `least`."""
    need(isinstance(value, int) and not isinstance(value, bool) and value >= least, f"{name} >= {least}", f"{value!r}")


def need_number(name: str, value: object, least: float, most: float = inf, *, above: bool = False) -> None:
    """Mistake unless `value` is a finite number from `least` to `most`; `above`: and is not `least` itself."""
    inside = isinstance(value, int | float) and least <= value <= most and value < inf and (value > least or not above)
    need(inside, f"{name} {'>' if above else '>='} {least}" + f" and <= {most}" * (most < inf), f"{value!r}")
