"""Which part of each parameter a rank holds, where one model is divided over several: experts and heads whole, the
table by rows, everything else on each."""

import math
from dataclasses import dataclass, replace

from ..errors import Mistake
from .config import LayerConfig, ModelConfig
from .folder import Tensor
from .names import parameter_name

MERGED = 10  # numbers a position: tops and their places, sums, entropies, what lists leave out, the draw


@dataclass(frozen=True)
class Share:
    """The share of `rank` among `ranks`."""

    rank: int = 0
    ranks: int = 1

    def divides(self, layer: LayerConfig) -> bool:
        """Return whether a layer's key-value heads can be divided; if not, every rank has all of its attention."""
        return layer.num_key_value_heads % self.ranks == 0

    def heads(self, layer: LayerConfig) -> LayerConfig:
        """`layer` with the key-value heads that this rank has."""
        heads = layer.num_key_value_heads
        return replace(layer, num_key_value_heads=heads // self.ranks if self.divides(layer) else heads)

    def part(self, total: int, what: str) -> slice:
        """This rank's of `total`. Mistake where the ranks do not divide them."""
        if total % self.ranks:
            raise Mistake(f"{self.ranks} ranks do not divide {what} ({total}): start another number of them")
        size = total // self.ranks
        return slice(self.rank * size, (self.rank + 1) * size)

    def of(self, config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of a parameter, or of one of the arrays that it is packed in."""
        whole = [slice(None)] * len(shape)
        heads = ".self_attn." in path and "norm" not in path and self.divides(config.layers[int(path.split(".")[3])])
        if self.ranks > 1 and (heads or ".experts." in path or ".embed_tokens." in path):
            axis = -1 if ".o_proj." in path else 0
            whole[axis] = self.part(shape[axis], path)
        return tuple(whole)

    def nbytes(self, config: ModelConfig, tensor: Tensor) -> int:
        """Bytes that this rank reads of a checkpoint's tensor."""
        parts = self.of(config, parameter_name(tensor.name), tensor.shape)
        count = math.prod(len(range(size)[part]) for size, part in zip(tensor.shape, parts, strict=True))
        return tensor.nbytes * count // max(1, math.prod(tensor.shape))

    def sent(self, config: ModelConfig, item: int) -> float:
        """Bytes that a rank sends in a denoise step, where a sum over all goes round as a ring: hidden states behind
        divided attention and behind experts, the canvas's and the mean embeddings, and what joins the sweeps."""
        sums = sum(self.divides(layer) for layer in config.layers) + len(config.layers) + 2
        summed = config.canvas_length * (sums * config.hidden_size * item + 4 * MERGED)
        return 2 * (self.ranks - 1) / self.ranks * summed


WHOLE = Share()
