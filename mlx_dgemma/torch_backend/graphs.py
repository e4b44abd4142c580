"""CUDA graphs: a function of tensors is captured at its first run, and then replayed with other numbers in its inputs.

A pass is some 1,500 small launches; as a graph it is one. On a CPU the function is simply called.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


class Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    outputs: Any


class Graphs:
    def __init__(self, device: torch.device):
        self.device = device
        self.captured: dict[Hashable, Captured] = {}
        # All share a memory pool, as they never run at the same time.
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def clear(self) -> None:
        """Drop all graphs, as the buffers that they read or write have moved."""
        self.captured.clear()
        if self.pool is not None:  # torch takes no more graphs into a pool that all have left
            self.pool = torch.cuda.graph_pool_handle()

    def call(self, function: Callable[[Inputs], Any], inputs: Inputs) -> Any:
        """Return `function(inputs)`, computed without a graph."""
        return function({name: tensor.to(self.device) for name, tensor in inputs.items()})

    def run(self, key: Hashable, function: Callable[[Inputs], Any], inputs: Inputs) -> Any:
        """Return `function(inputs)`. `key` must tell apart all shapes, and all else that the function depends on. The
        outputs are good until the next run of any key: a graph that was captured earlier may work where they lie."""
        if self.pool is None:
            return self.call(function, inputs)
        captured = self.captured.get(key)
        if captured is None:
            captured = self.captured[key] = self._capture(function, inputs)
        for name, tensor in inputs.items():
            captured.inputs[name].copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, function: Callable[[Inputs], Any], inputs: Inputs) -> Captured:
        inputs = {name: tensor.to(self.device, copy=True) for name, tensor in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once outside: kernels are compiled, libraries take their workspaces
            function(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = function(inputs)
        return Captured(graph, inputs, outputs)
