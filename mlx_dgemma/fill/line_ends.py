r"""A text's line ends and byte order mark. The model is shown "\n" and no mark, and the text gets its own back."""

BOM = "\ufeff"


def line_end(text: str) -> str:
    r"""Returns what most lines of `text` end with: "\n", "\r\n", or "\r" where there is neither."""
    crlf, lf = text.count("\r\n"), text.count("\n")
    if crlf or lf:
        return "\r\n" if 2 * crlf > lf else "\n"
    return "\r" if "\r" in text else "\n"


def shown(text: str, end: str | None = None) -> str:
    """Returns `text` as the model is shown it. `end`: what lines end with in the text that it is a part of."""
    lines = text.removeprefix(BOM).replace("\r\n", "\n")
    return lines.replace("\r", "\n") if (end or line_end(text)) == "\r" else lines


def given_back(text: str, end: str) -> str:
    """Returns what the model wrote, with lines that end with `end`."""
    return text.replace("\r\n", "\n").replace("\n", end)
