"""The sets of ids that `Row.allowed` points to."""

from collections.abc import Sequence

import numpy as np

from .model import Row, TokenSet

LOGPROB_SET = 1024  # sets of fewer ids have their log-probabilities reported


def token_set(ids: Sequence[int], vocab_size: int) -> TokenSet:
    """Make a set of `ids`. ValueError if it is empty or an id is out of the vocabulary."""
    unique = np.array(list(dict.fromkeys(int(i) for i in ids)), np.int64)
    if not len(unique) or unique.min() < 0 or unique.max() >= vocab_size:
        raise ValueError(f"a token set needs ids in [0, {vocab_size}), got {unique[:8].tolist()}")
    return TokenSet(unique)


class Allowed:
    """The sets that the positions of several rows point to.

    Attributes:
        sets: those in use, each once.
        index: [T] of the positions of all rows, one row after another: into `sets`, -1 where every token is allowed.
    """

    def __init__(self, rows: Sequence[Row], lengths: Sequence[int] | None = None):
        """`lengths`: positions that each row takes, padding behind its canvas included. ValueError: an index is out of
        its row's `token_sets`."""
        numbers: dict[TokenSet, int] = {}
        parts = []
        for row, length in zip(rows, lengths or [len(row.canvas) for row in rows], strict=True):
            part = np.full(length, -1, np.int64)
            if row.allowed is not None:
                index = np.asarray(row.allowed)
                if index.min() < -1 or index.max() >= len(row.token_sets):
                    raise ValueError(f"`allowed` points to token set {index.max()}, the row has {len(row.token_sets)}")
                for number in np.unique(index[index >= 0]):
                    part[: len(index)][index == number] = numbers.setdefault(row.token_sets[number], len(numbers))
            parts.append(part)
        self.sets, self.index = list(numbers), np.concatenate(parts)

    def table(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray] | None:
        """[1 + sets, V] bool, the first row allowing all, and [T] indices into it; None where all is allowed."""
        if not self.sets:
            return None
        table = np.zeros((1 + len(self.sets), vocab_size), dtype=bool)
        table[0] = True
        for row, allowed in zip(table[1:], self.sets, strict=True):
            row[allowed.ids] = True
        return table, self.index + 1

    def small(self) -> list[tuple[TokenSet, np.ndarray]]:
        """The sets small enough for log-probabilities, each with the positions that point to it."""
        places = [(allowed, np.flatnonzero(self.index == i)) for i, allowed in enumerate(self.sets)]
        return [(allowed, positions) for allowed, positions in places if len(allowed.ids) < LOGPROB_SET]
