"""Adapters on the network's linears (LoRA, arXiv 2106.09685), and the published names of what lies side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.adapter import Adapter, Shape
from .formats import Rounded
from .fused import Activation, gated
from .layers import ExpertLinear, Linear, SideBySide
from .network import Network

JOINED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


class LowRank(nn.Module):
    """x -> scale * (x @ a) @ b, in the dtype of a [in, r] and b [r, out]."""

    def __init__(self, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        for name, array in (("lora_a", a), ("lora_b", b), ("scale", torch.tensor(scale, device=a.device))):
            self.register_buffer(name, array)  # buffers, as all weights here: the model's fingerprint counts them

    def forward(self, x: Tensor, experts: Tensor | None = None) -> Tensor:
        return self.scale * (x.to(self.lora_a.dtype) @ self.lora_a) @ self.lora_b


class LowRankExperts(LowRank):
    """The same with a pair for each expert: a [E, r, in], b [E, out, r]."""

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        # One product with all experts' pairs, of which each row keeps its own: nothing has to be read from the device.
        count, rank, _ = self.lora_a.shape
        inner = (x.to(self.lora_a.dtype) @ self.lora_a.flatten(0, 1).T).unflatten(-1, (count, rank))
        chosen = torch.arange(count, device=x.device) == experts[:, None]
        inner = torch.where(chosen[..., None], inner, 0).flatten(1)
        return self.scale * inner @ self.lora_b.transpose(1, 2).flatten(0, 1)


class Adapted(nn.Module):
    """A linear, or several side by side, and what adapters add to each."""

    def __init__(self, base: Linear | SideBySide):
        super().__init__()
        self.base, self.sizes = base, base.sizes if isinstance(base, SideBySide) else [base.weight.shape[-2]]
        self.added = nn.ModuleDict()  # by number among `sizes`

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def is_fp8(self) -> bool:
        return self.base.is_fp8

    def forward(
        self, x: Activation, ends: Tensor | None = None, tokens: Tensor | None = None, *, gate: bool = False
    ) -> Activation:
        """Compute what the base does, and the adapters; `ends` and `tokens` as in `ExpertLinear.forward`."""
        parts = list((self.base(x) if ends is None else self.base(x, ends, tokens)).split(self.sizes, dim=-1))
        x, experts = x.exact() if isinstance(x, Rounded) else x, None
        if ends is not None:
            x = x if tokens is None else x.index_select(0, tokens)
            experts = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
        for number, added in self.added.items():
            parts[int(number)] = parts[int(number)] + added(x, experts).to(parts[0].dtype)
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return gated(y, self.is_fp8) if gate else y


@dataclass(frozen=True)
class Place:
    """A linear by its published path: part `number` of what `parent` holds as `name`."""

    parent: nn.Module
    name: str
    number: int
    linear: Linear  # which holds its rows
    rows: slice

    @property
    def shape(self) -> Shape:
        """[..., out, in], unpacked."""
        *outer, out, width = self.linear.shape
        return (*outer, len(range(out)[self.rows]), width)


def places(network: Network) -> dict[str, Place]:
    """Each linear of the network, by its published path."""
    by_path, modules = {}, dict(network.named_modules())
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if isinstance(module, SideBySide):
            for number, (part, linear, rows) in enumerate(_parts(module, JOINED[name])):
                by_path[f"{parent}.{part}"] = Place(modules[parent], name, number, linear, rows)
        elif isinstance(module, Linear) and not isinstance(modules[parent], nn.ModuleList):
            by_path[path] = Place(modules[parent], name, 0, module, slice(None))
    return by_path


def shapes(network: Network) -> dict[str, Shape]:
    """Path of each linear -> [..., out, in], unpacked."""
    return {path: place.shape for path, place in places(network).items()}


def _parts(module: SideBySide, names: tuple[str, ...]) -> Iterator[tuple[str, Linear, slice]]:
    alike, first = len(module.linears) == 1, 0
    for number, (name, size) in enumerate(zip(names, module.sizes, strict=False)):
        yield name, module.linears[0 if alike else number], slice(first, first + size) if alike else slice(None)
        first += size


def weights(network: Network) -> dict[str, tuple[Tensor, slice]]:
    """Published path -> the tensor that holds a parameter, and its rows: all that are floats."""
    named = {f"{path}.weight": (place.linear.weight, place.rows) for path, place in places(network).items()}
    joined = {id(tensor) for tensor, _ in named.values()}
    named |= {path: (array, slice(None)) for path, array in network.named_buffers() if id(array) not in joined}
    return {path: (array, rows) for path, (array, rows) in named.items() if array.is_floating_point()}


def attach(network: Network, adapter: Adapter) -> dict[str, Tensor]:
    """Add the adapter to the network -> what was added, by the names in its file. Mistake where it is another
    model's."""
    if not adapter.low_rank:
        stored = weights(network)
        adapter.check({path: (len(range(len(a))[rows]), *a.shape[1:]) for path, (a, rows) in stored.items()})
        for name, array in adapter.tensors.items():
            tensor, rows = stored[name]
            tensor[rows] = torch.from_numpy(array).to(tensor)
        return {}
    by_path, added = places(network), {}
    for path, (a, b) in adapter.pairs(shapes(network)).items():
        place, device = by_path[path], by_path[path].linear.weight.device
        holder = getattr(place.parent, place.name)
        if not isinstance(holder, Adapted):
            holder = Adapted(holder)
            setattr(place.parent, place.name, holder)
        kind = LowRankExperts if isinstance(place.linear, ExpertLinear) else LowRank
        pair = kind(torch.tensor(a, device=device), torch.tensor(b, device=device), adapter.scale)
        holder.added[str(place.number)] = pair
        added |= {f"{path}.lora_a": pair.lora_a, f"{path}.lora_b": pair.lora_b}
    return added
