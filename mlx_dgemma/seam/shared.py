"""The NumPy that backends share: checks of what they are given, and fixed tokens laid over a prediction."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import Mistake
from .model import Cache, Continuation, DiffusionModel, Draw, NextToken, Row, Text

VECTORS = ("argmax", "sample", "entropy", "confidence", "top")  # of a Prediction, [L] each


def checked(text: Text, vocab_size: int) -> Text:
    """`text` itself. Mistake where an id is out of the vocabulary."""
    ids = text.tokens
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise Mistake(
            f"token ids must be in [0, {vocab_size}), got {ids.min()} to {ids.max()}: is the tokenizer its own?"
        )
    return text


def check_caches(texts: Sequence[Text], caches: Sequence[Cache]) -> None:
    """ValueError unless each text has a cache to itself."""
    if len(texts) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
        raise ValueError(f"need one cache of its own for each of {len(texts)} texts")


def pending_texts(rows: Sequence[Row], vocab_size: int) -> list[tuple[Text, Cache]]:
    """The texts to encode before `rows` are denoised, once for each cache. ValueError where rows of one cache have
    different texts."""
    texts: dict[int, tuple[Text, Cache]] = {}
    for row in rows:
        text = checked(row.pending, vocab_size)
        known, _ = texts.setdefault(id(row.cache), (text, row.cache))
        if not np.array_equal(known.tokens, text.tokens):
            raise ValueError("rows that share a cache must have the same pending tokens")
    return [(text, cache) for text, cache in texts.values() if len(text)]


def known_ids(row: Row, certain: np.ndarray | None) -> np.ndarray | None:
    """Lay the row's hint over the ids that its last pass left `certain`: [L] int32, -1 for none."""
    if row.hint is None:
        return certain
    hint = np.asarray(row.hint, np.int32)
    return hint if certain is None else np.where(hint >= 0, hint, certain)


def join_scores(parts: Sequence[tuple[np.ndarray, ...]]) -> NextToken:
    """Join what `NextToken` has of the parts of a text."""
    if not parts:
        return NextToken(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))
    return NextToken(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def lay_fixed(row: Row, vectors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """`vectors` of VECTORS with what is fixed in `row` laid over them; and the fixed ids [L] int32, -1 elsewhere."""
    if row.fixed is None:
        return vectors, None
    canvas, fixed = np.asarray(row.canvas, np.int32), np.asarray(row.fixed, bool)
    certain = {"argmax": canvas, "sample": canvas, "entropy": 0, "confidence": 1, "top": 1}
    laid = {name: np.where(fixed, certain[name], array).astype(array.dtype) for name, array in vectors.items()}
    return laid, np.where(fixed, canvas, -1).astype(np.int32)


def begin_autoregress(
    model: DiffusionModel, continuations: Sequence[Continuation], draw: Draw
) -> tuple[int, np.ndarray]:
    """Encode what is pending -> how many tokens can be written, and their uniforms [B, steps] float32, empty where the
    argmax is taken. ValueError where a text has nothing to go on from."""
    waiting = [text for text in continuations if len(text.pending)]
    model.encode([text.pending for text in waiting], [text.cache for text in waiting])
    caches = [text.cache for text in continuations]
    if any(cache.hidden is None for cache in caches):  # both backends keep the last hidden states there
        raise ValueError("nothing to go on from: give at least one pending token")
    room = min((model.facts.max_position_embeddings - cache.length for cache in caches), default=0)
    steps = min(room, *(len(text.uniforms) for text in continuations)) if continuations else 0
    rows = [text.uniforms[:steps] if draw.temp else [] for text in continuations]
    return steps, np.array(rows, np.float32)


def check_trim(tokens: int, length: int, retained: int, seen: int) -> None:
    """ValueError where `tokens` cannot be forgotten: sliding layers keep `retained` of a text of `length`, and a next
    pass sees `seen` of its past."""
    if not 0 <= tokens <= length:
        raise ValueError(f"cannot forget {tokens} of {length} tokens")
    left = length - tokens
    if retained - tokens < min(seen, left):
        raise ValueError(
            f"cannot forget {tokens} tokens: the sliding layers keep {retained}, "
            f"and a text of {left} needs {min(seen, left)} of them; encode it anew"
        )


def checksum(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a checksum of a saved cache: what its file says about it, and the bytes of its arrays (uint8)."""
    digest = hashlib.sha256(repr([about.get(name) for name in ("length", "first", "model")]).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def check_saved(path: str | Path, about: Mapping[str, str], fingerprint: str, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError where a saved cache is of another model than `fingerprint` names, or is not what was saved."""
    if about.get("model") != fingerprint:
        raise ValueError(f"{path} was made by another model: its text must be encoded anew")
    if about.get("checksum") != checksum(about, arrays):
        raise ValueError(f"{path} is damaged: its checksum is another")
