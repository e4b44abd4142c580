"""Copies of tied tensors: some programs write the encoder's weights, or the output layer's, beside the decoder's, which
all three are (transformers: `_tied_weights_keys` of DiffusionGemma)."""

from collections.abc import Mapping

import numpy as np

from ..errors import Mistake
from .folder import Tensor

_STEP = 1 << 24  # bytes that are compared at a time
_PREFIXES = {
    "lm_head.": "model.decoder.embed_tokens.",
    "model.lm_head.": "model.decoder.embed_tokens.",
    "model.encoder.language_model.": "model.decoder.",
}


def without_copies(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors without copies of others, and the copies' names. A copy whose original is not there takes its
    place. Mistake names a copy that differs from its original."""
    kept = {name: tensor for name, tensor in tensors.items() if _original(name) is None}
    dropped = []
    for name in sorted(tensors.keys() - kept.keys()):
        tensor, original = tensors[name], _original(name)
        if original not in kept:
            kept[original] = tensor
        elif not _equal(tensor, kept[original]):
            raise Mistake(f"{tensor.where} must be a copy of {original}, and differs: fetch the checkpoint again")
        else:
            dropped.append(name)
    return kept, tuple(dropped)


def _original(name: str) -> str | None:
    """Return the name of the tensor that this one is a copy of; None where it is none."""
    if name.endswith(".layer_scalar"):  # the one weight that the encoder has of its own
        return None
    return next((new + name[len(old) :] for old, new in _PREFIXES.items() if name.startswith(old)), None)


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.nbytes:
        return True
    parts = [
        np.memmap(tensor.file, np.uint8, "r", offset=tensor.start, shape=(tensor.nbytes,)) for tensor in (one, other)
    ]
    ranges = (slice(first, first + _STEP) for first in range(0, one.nbytes, _STEP))
    return all(np.array_equal(parts[0][part], parts[1][part]) for part in ranges)
