"""What is drawn on a terminal and taken away again: rich's, which leaves nothing behind when the terminal changes."""

import rich.live
from rich.console import Console, RenderableType
from rich.control import Control
from rich.progress import Progress, ProgressColumn
from rich.segment import ControlType, Segment

UP = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))


class Live(rich.live.Live):
    """A terminal that becomes narrower wraps what was drawn: that has more rows then, which are taken away, too."""

    _widths: tuple[int, ...] = ()  # cells of each line that was drawn

    def process_renderables(self, renderables: list[RenderableType]) -> list[RenderableType]:
        columns, drawn = self.console.width, self._widths
        found = super().process_renderables(renderables)
        if self.console.is_terminal:
            rows = sum((cells - 1) // columns for cells in drawn if cells)
            found.insert(1, Control(*UP * rows))  # behind what takes away the rows that there were
            lines = self.console.render_lines(self.get_renderable(), pad=False)
            self._widths = tuple(map(Segment.get_line_length, lines))
        return found


class Bar(Progress):
    """Progress on stderr, as wide as the terminal. `aside`: text that is printed meanwhile is shown above it."""

    def __init__(self, *columns: str | ProgressColumn, hidden: bool, aside: bool = True):
        modes = {"console": Console(stderr=True), "transient": True, "redirect_stdout": aside, "redirect_stderr": aside}
        super().__init__(*columns, disable=hidden, expand=True, **modes)
        self.live = Live(get_renderable=self.get_renderable, refresh_per_second=10, **modes)
