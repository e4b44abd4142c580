"""A checkpoint with an adapter added to its weights: the same files, tensors and formats."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint import inside
from ..checkpoint.adapter import Adapter, Shape
from ..checkpoint.config import Quantization, parse_config
from ..checkpoint.folder import INDEX, Tensor, read_configs, read_tensors
from ..checkpoint.memory import check_disk
from ..checkpoint.names import GLOBAL_SCALE, is_vision, parameter_name
from ..errors import Mistake

Arrays = dict[str, mx.array]


class Fusion:
    def __init__(self, folder: Path, adapter: Adapter):
        inside.check(folder)
        self.folder, self.adapter = folder, adapter
        self.config = parse_config(*read_configs(folder))
        self.tensors = read_tensors(folder)
        named = {parameter_name(name): tensor for name, tensor in self.tensors.items() if not is_vision(name)}
        self.names = {path: tensor.name for path, tensor in named.items()}
        linears = {p.removesuffix(".weight"): t for p, t in named.items() if p.endswith(".weight") and len(t.shape) > 1}
        self.pairs = (
            adapter.pairs({path: self._shape(path, t) for path, t in linears.items()}) if adapter.low_rank else {}
        )
        if not adapter.low_rank:
            adapter.check({path: tensor.shape for path, tensor in named.items()})
        for path in self.pairs:
            if f"{path}.{GLOBAL_SCALE}" in self.tensors:
                raise Mistake(f"{path} has NVIDIA's factors, which nothing is added to: convert the checkpoint first")

    def quantization(self, path: str) -> Quantization | None:
        if f"{path}.scales" not in self.tensors:
            return None
        return (self.config.quantized_paths or {}).get(path, self.config.quantization)

    def _shape(self, path: str, tensor: Tensor) -> Shape:
        stored = self.quantization(path)
        return (*tensor.shape[:-1], tensor.shape[-1] * 32 // stored.bits) if stored else tensor.shape

    def write(self, destination: Path) -> Iterator[str]:
        """Write the new folder, a file at a time; yields their names. Mistake: the disk is too small."""
        check_disk(destination.parent, sum(tensor.nbytes for tensor in self.tensors.values()), str(destination))
        part = destination.with_name(f"{destination.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        files = sorted({tensor.file for tensor in self.tensors.values()})
        configs = [file for name in ("config.json", INDEX) if (file := self.folder / name).is_file()]
        for file in (*inside.copied(self.folder), *configs):
            shutil.copyfile(file, part / file.name)
        sources = {file: mx.load(str(file), format="safetensors", return_metadata=True) for file in files}
        arrays: Arrays = {name: array for stored, _ in sources.values() for name, array in stored.items()}
        self._add(arrays)
        for file in files:
            stored, metadata = sources.pop(file)
            tensors = {name: arrays.pop(name) for name in list(stored)}
            stored.clear()  # what is written can go
            mx.save_safetensors(str(part / file.name), tensors, metadata)
            yield file.name
        part.rename(destination)

    def _add(self, arrays: Arrays) -> None:
        """Replace the arrays that the adapter changes. Lazy."""
        for path, (a, b) in self.pairs.items():
            name, stored = self.names[f"{path}.weight"], self.quantization(path)
            difference = self.adapter.scale * (np.matmul(b, a) if b.ndim == 3 else np.matmul(a, b).T)
            if stored is None:
                whole = arrays[name].astype(mx.float32) + mx.array(difference)
                arrays[name] = whole.astype(arrays[name].dtype)
                continue
            kinds = [kind for kind in ("weight", "scales", "biases") if f"{path}.{kind}" in arrays]
            packed, groups = [arrays[f"{path}.{kind}"] for kind in kinds], vars(stored)
            whole = mx.dequantize(*packed, **groups).astype(mx.float32) + mx.array(difference)
            again = mx.quantize(whole.astype(packed[1].dtype if stored.mode == "affine" else mx.float32), **groups)
            arrays |= {f"{path}.{kind}": array for kind, array in zip(kinds, again, strict=True)}
        if not self.adapter.low_rank:
            for path, array in self.adapter.tensors.items():
                name = self.names[path]
                arrays[name] = mx.array(array).astype(arrays[name].dtype)
