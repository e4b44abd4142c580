r"""A text's line ends and byte order mark. The model reads "\n" and no mark; what it writes gets the text's ends."""

BOM = "\ufeff"


def line_end(text: str) -> str:
    r"""Returns what most lines of `text` end with: "\n", "\r\n", or "\r" where there is neither."""
    crlf, lf = text.count("\r\n"), text.count("\n")
    if crlf or lf:
        return "\r\n" if 2 * crlf > lf else "\n"
    return "\r" if "\r" in text else "\n"


def normalized(text: str, end: str | None = None) -> str:
    r"""Returns `text` with "\n" at line ends, and no mark. `end`: the line end of the text that it is a part of."""
    lines = text.removeprefix(BOM).replace("\r\n", "\n")
    return lines.replace("\r", "\n") if (end or line_end(text)) == "\r" else lines


def with_line_ends(text: str, end: str) -> str:
    """Returns the model's `text` with `end` at line ends."""
    return text.replace("\r\n", "\n").replace("\n", end)
