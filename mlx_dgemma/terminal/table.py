"""Tables of figures on standard output, and how a figure is written."""

import sys
from collections.abc import Iterable, Sequence


def plain(value: float, scale: float = 1.0) -> str:
    """Writes three digits and no exponent."""
    value *= scale
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ms(seconds: float) -> str:
    return plain(seconds, 1e3)


def percent(share: float) -> str:
    return f"{share:.0%}"


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Prints on standard output; the first `left` columns are text, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if any(titles) else None, show_header=any(titles), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False).print(table)
