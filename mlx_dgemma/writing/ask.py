"""The options of one text, as the loop takes them."""

from dataclasses import dataclass, field

from ..errors import Mistake, need, need_number, need_whole
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
        need_whole("max_tokens", self.max_tokens, 1)
        need(self.mode in MODES, f"mode to be one of {', '.join(MODES)}", f"{self.mode!r}")
        if self.verify and self.mode != "diffusion":
            raise Mistake(f"verify checks what was denoised: leave it out, or mode {self.mode!r}")
        if self.deadline is not None:
            need_number("deadline", self.deadline, 0, above=True)
