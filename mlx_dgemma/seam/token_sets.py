"""The sets of ids that `Row.allowed` points to, each registered once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOGPROB_SET = 1024  # sets of fewer ids have their log-probabilities reported


class TokenSets:
    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.ids: list[np.ndarray] = []
        self.numbers: dict[bytes, int] = {}  # by their ids: a set may be of nearly the whole vocabulary

    def add(self, ids: Sequence[int]) -> int:
        """The set's index. ValueError if it is empty or an id is out of the vocabulary."""
        unique = np.array(list(dict.fromkeys(int(i) for i in ids)), np.int64)
        if not len(unique) or unique.min() < 0 or unique.max() >= self.vocab_size:
            raise ValueError(f"a token set needs ids in [0, {self.vocab_size}), got {unique[:8].tolist()}")
        number = self.numbers.setdefault(unique.tobytes(), len(self.ids))
        if number == len(self.ids):
            self.ids.append(unique)
        return number

    def table(self, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[T] set indices -> [sets, V] bool of those that occur, the first allowing all, and [T] indices into it."""
        used, index = np.unique(np.append(allowed, -1), return_inverse=True)
        if used[-1] >= len(self.ids) or used[0] < -1:
            wrong = used[-1] if used[-1] >= len(self.ids) else used[0]
            raise ValueError(f"token set {wrong} is not registered: there are {len(self.ids)}")
        table = np.zeros((len(used), self.vocab_size), dtype=bool)
        table[0] = True
        for row, number in enumerate(used[1:], start=1):
            table[row][self.ids[number]] = True
        return table, index[:-1]
