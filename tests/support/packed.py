"""Weights packed as `mx.quantize` packs them, by NumPy: a machine with CUDA may have no MLX."""

from __future__ import annotations

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3 = np.concatenate([np.arange(8) * 2.0**-9, *((8 + np.arange(8)) * 2.0 ** (e - 10) for e in range(1, 16))])
E4M3 = E4M3[:-1].astype(np.float32)  # the last code is NaN


def _nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Places in the ascending `table` of what is nearest to each of x >= 0."""
    return np.searchsorted((table[1:] + table[:-1]) / 2, x).astype(np.uint8)


def _floats(x: np.ndarray, table: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of sign and size, and what they mean."""
    codes, negative = _nearest(np.abs(x), table), x < 0
    return codes | negative.astype(np.uint8) << (bits - 1), np.where(negative, -1, 1) * table[codes]


def pack(weight: np.ndarray, group_size: int = 64, bits: int = 4, mode: str = "affine"):
    """[..., width] float32 -> the arrays of `mx.quantize`: words, scales, and for affine biases; and the float32
    numbers [..., width] that they stand for."""
    groups = weight.reshape(*weight.shape[:-1], -1, group_size)
    if mode == "affine":
        bias = groups.min(axis=-1)
        scale = (groups.max(axis=-1) - bias) / np.float32(2**bits - 1) + np.float32(1e-7)
        codes = np.rint((groups - bias[..., None]) / scale[..., None]).clip(0, 2**bits - 1).astype(np.uint8)
        stored, values = [scale, bias], codes * scale[..., None] + bias[..., None]
    else:
        table, largest = (E4M3 if bits == 8 else E2M1), np.abs(groups).max(axis=-1)
        if mode == "nvfp4":
            stored = [_nearest(largest / 6, E4M3)]
            scale = E4M3[stored[0]]
        else:
            exponent = np.ceil(np.log2(np.maximum(largest / table[-1], 1e-30)))
            stored, scale = [(exponent + 127).astype(np.uint8)], np.exp2(exponent).astype(np.float32)
        codes, values = _floats(groups / np.where(scale == 0, 1, scale)[..., None], table, bits)
        values = values * scale[..., None]
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    octets = np.packbits(stream.reshape(*weight.shape[:-1], -1), axis=-1, bitorder="little")
    return [octets.view(np.uint32), *stored], values.reshape(weight.shape).astype(np.float32)
