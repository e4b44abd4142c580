"""Adapters: what a training run adds to a checkpoint, as mlx-lm stores it.

A folder has adapters.safetensors and adapter_config.json. A pair `PATH.lora_a` [in, r], `PATH.lora_b` [r, out] adds
scale * (x @ a) @ b to the linear at PATH; of experts, [E, r, in] and [E, out, r]. `fine_tune_type` full: whole weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import Mistake
from .folder import read_header

FILE, CONFIG = "adapters.safetensors", "adapter_config.json"
ATTENTION_AND_MLP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ATTENTION_AND_MLP += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
Shape = tuple[int, ...]
_NUMPY = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Adapter:
    tensors: Mapping[str, np.ndarray]  # float32, by mlx-lm's names
    scale: float
    low_rank: bool = True  # or whole weights
    where: str = "the adapter"  # for messages

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Mistake where a tensor is none of `shapes`, or has another shape."""
        for name, array in self.tensors.items():
            if name not in shapes:
                raise Mistake(f"{self.where}: {name} is of no layer of this model: was it made for another?")
            if array.shape != shapes[name]:
                expected = list(shapes[name])
                raise Mistake(f"{self.where}: {name} has shape {list(array.shape)}, this model needs {expected}")

    def pairs(self, linears: Mapping[str, Shape]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Path -> (a, b). `linears` are the shapes [..., out, in] of those that it may be of. Mistake: as `check`."""
        paths = list(dict.fromkeys(name.rpartition(".lora_")[0] or name for name in self.tensors))
        shapes = {}
        for path in paths:
            a = self.tensors.get(f"{path}.lora_a")
            if path in linears and a is not None and a.ndim == len(linears[path]):
                rank = a.shape[1]
                shapes |= dict(zip((f"{path}.lora_a", f"{path}.lora_b"), pair_shapes(linears[path], rank), strict=True))
        self.check(shapes)
        if lone := [path for path in paths if f"{path}.lora_b" not in self.tensors]:
            raise Mistake(f"{self.where}: {lone[0]} has lora_a and no lora_b: save the adapter again")
        return {path: (self.tensors[f"{path}.lora_a"], self.tensors[f"{path}.lora_b"]) for path in paths}


Start = Callable[[Mapping[str, Shape]], Adapter]  # makes the adapter that is learnt, from the shapes of all linears


def pair_shapes(linear: Shape, rank: int) -> tuple[Shape, Shape]:
    """Shapes of a and b for a linear [..., out, in]."""
    *experts, out, width = linear
    return ((*experts, rank, width), (*experts, out, rank)) if experts else ((width, rank), (rank, out))


def begin(linears: Mapping[str, Shape], keys: Iterable[str], rank: int, scale: float, seed: int) -> Adapter:
    """An adapter that changes nothing yet, on the linears whose path ends with one of `keys`: a is uniform within
    1 / sqrt(in), as mlx-lm's, b is zero."""
    rng, tensors = np.random.default_rng(seed), {}
    for path in sorted(path for path in linears if path.endswith(tuple(keys)) and _may_learn(path)):
        a, b = pair_shapes(linears[path], rank)
        bound = linears[path][-1] ** -0.5
        tensors[f"{path}.lora_a"] = rng.uniform(-bound, bound, a).astype(np.float32)
        tensors[f"{path}.lora_b"] = np.zeros(b, np.float32)
    if not tensors:
        known = sorted({".".join(path.split(".")[-2:]) for path in linears if _may_learn(path)})
        raise Mistake(f"lora_parameters: no layer is named {', '.join(keys)}: name some of {', '.join(known)}")
    return Adapter(tensors, scale)


def _may_learn(path: str) -> bool:
    """The router stays as it is, and the table is looked up, too."""
    return not path.endswith(("router.proj", "embed_tokens"))


def read_floats(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in float32."""
    arrays = {}
    for name, tensor in read_header(path).items():
        raw = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.start)
        if tensor.dtype == "BF16":  # the upper half of a float32
            array = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif tensor.dtype in _NUMPY:
            array = raw.view(_NUMPY[tensor.dtype]).astype(np.float32)
        else:
            raise Mistake(f"{tensor.where} has dtype {tensor.dtype}: an adapter's are floats")
        if not np.isfinite(array).all():
            raise Mistake(f"{tensor.where} holds NaN or Inf: take an earlier save")
        arrays[name] = array.reshape(tensor.shape)
    return arrays
