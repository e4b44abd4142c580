"""The tokens of a pass, and the keys that their queries attend to: shapes on the host, all else on the device."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeyRange:
    """The keys that Q queries of each of N sequences attend to, in layers of one kind: those at positions [lo, hi)."""

    slot: Tensor  # [N] int32, of the pool
    lo: Tensor  # [N, Q] int32
    hi: Tensor  # [N, Q] int32
    width: int  # at least hi.max() - lo.min() of every sequence: known on the host, as shapes are
    canvas: Tensor | None  # [N] int32: tokens of the canvas; None: texts, whose keys are in the cache

    @functools.cached_property
    def positions(self) -> Tensor:
        """[N, S]: of the text's keys that any query of a sequence sees, S = `width`."""
        return self.lo.amin(dim=1, keepdim=True) + torch.arange(self.width, device=self.lo.device)

    @functools.cached_property
    def mask(self) -> Tensor:
        """[N, Q, S], of a canvas [N, Q, S + Q]: 0 where a query sees a key, else -inf. All layers of one kind share
        it."""
        seen = (self.positions[:, None] >= self.lo[..., None]) & (self.positions[:, None] < self.hi[..., None])
        if self.canvas is not None:
            count = self.lo.shape[1]
            own = torch.arange(count, device=self.lo.device) < self.canvas[:, None, None]
            seen = torch.cat((seen, own.expand(-1, count, -1)), dim=-1)
        return torch.where(seen, 0.0, -torch.inf)


@dataclass
class Tokens:
    """N sequences of Q tokens, padded: texts or canvases. Only `causal` and `context` are known on the host."""

    ids: Tensor  # [N, Q] int64
    start: Tensor  # [N] int32: position of the first, which is how many tokens of text there are before
    count: Tensor  # [N] int32: how many of Q are real
    slot: Tensor  # [N] int32: of the cache they belong to
    causal: bool
    context: int  # tokens of text that any of them sees, at most

    @property
    def positions(self) -> Tensor:
        return self.start[:, None] + torch.arange(self.ids.shape[1], dtype=torch.int32, device=self.ids.device)

    def keys(self, window: int | None) -> KeyRange:
        """The reference gives each token of a canvas the last window - 1 tokens of text, wherever it stands."""
        at = self.positions
        last = at if self.causal else self.start[:, None].expand_as(at)
        hi = torch.minimum(at + 1, (self.start + self.count)[:, None]) if self.causal else last.contiguous()
        lo, width = torch.zeros_like(at), self.context
        if window is not None:
            lo = (last + 1 - window).clamp(min=0).contiguous()
            width = min(width, window - 1 + (self.ids.shape[1] if self.causal else 0))
        return KeyRange(self.slot, lo, hi, width, None if self.causal else self.count)

    def places(self, room: int) -> tuple[Tensor, Tensor]:
        """Slot and place [N, Q] at which the pool keeps their K and V. Padding goes behind the room."""
        at = self.positions
        real = torch.arange(at.shape[1], device=at.device) < self.count[:, None]
        return self.slot[:, None].expand_as(at).long(), torch.where(real, at % room, room).long()
