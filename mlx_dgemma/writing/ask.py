"""The options of one text, as the loop takes them."""

from dataclasses import dataclass, field

from ..errors import Mistake, need
from ..seam.model import Draw
from .sampling import Sampling

MODES = ("diffusion", "ar", "auto")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """How a text is to be written."""

    sampling: Sampling = field(default_factory=Sampling)  # how a canvas is denoised
    max_tokens: int = 2048  # the text is cut there
    seed: int = 0  # of all random numbers: the same seed, the same draws
    mode: str = "diffusion"  # one of MODES: denoise, write left to right, or per block what costs less
    verify: bool = False  # check each denoised block by the causal pass, and write again what it doubts
    deadline: float | None = None  # seconds after which the text ends as it stands
    draw: Draw = field(default_factory=Draw)  # left to right: how a token is drawn

    def __post_init__(self) -> None:
        need(self.max_tokens >= 1, "max_tokens >= 1", f"{self.max_tokens}")
        need(self.mode in MODES, f"mode to be one of {', '.join(MODES)}", f"{self.mode!r}")
        if self.verify and self.mode != "diffusion":
            raise Mistake(f"verify checks what was denoised: leave it out, or mode {self.mode!r}")
        late = self.deadline
        need(late is None or (isinstance(late, int | float) and late > 0), "deadline > 0", f"{late!r}")
