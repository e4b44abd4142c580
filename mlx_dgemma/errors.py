"""What the user gave is wrong: the commands show these in one line and exit with 2. Any other error is ours, and a
traceback. The message names what was wrong, what was given, and what to do."""


class Mistake(ValueError):
    """A file, an option or a prompt that cannot be used."""


class NotFound(Mistake, FileNotFoundError):
    """Something that should be there is not."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoRoom(Mistake):
    """A prompt that is longer than the context."""


def need(holds: bool, what: str, given: str) -> None:
    """Mistake unless it holds."""
    if not holds:
        raise Mistake(f"need {what}, got {given}")
