"""CUDA graphs as far as a CPU has them: what was captured is run again, on its own inputs, into its own outputs."""

from __future__ import annotations

from typing import Any

import torch

from mlx_dgemma.torch_backend.graphs import Graphs


def tensors(outputs: Any) -> list[torch.Tensor]:
    found = [outputs] if isinstance(outputs, torch.Tensor) else list(vars(outputs).values())
    return [one for one in found if one is not None]


class Replayed(Graphs):
    """A function is captured with all that it holds; whoever keeps an output beyond the next run is left with that
    run's numbers."""

    def run(self, key, function, inputs):
        if key not in self.captured:
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            self.captured[key] = function, own, function(own)
        function, own, outputs = self.captured[key]
        assert own.keys() == inputs.keys()
        for name, tensor in inputs.items():
            assert own[name].shape == tensor.shape and own[name].dtype == tensor.dtype, name
            own[name].copy_(tensor)
        again = function(own)
        for old, new in zip(tensors(outputs), tensors(again), strict=True):
            old.copy_(new)
        return outputs
