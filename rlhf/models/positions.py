"""Relative positions of MPNet: which of 32 learned numbers a pair of tokens adds to its attention score, as T5 made them.

Of the distance s − t: half of the buckets for tokens behind, half for those ahead; single distances up to 7, then steps that grow
by the logarithm up to 127, beyond which all are one.
"""

import numpy as np

BUCKETS, FARTHEST = 32, 128


def buckets(length: int) -> np.ndarray:
    """int32[T, T]: the bucket of token s (column) seen from token t (row)."""
    places = np.arange(length)
    distance = places[None, :] - places[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = np.abs(distance)
    with np.errstate(divide="ignore"):  # of distance 0, which is near
        grown = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(np.log(FARTHEST / exact))
    steps = np.where(far < exact, 0.0, grown * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(far < exact, far, np.minimum(exact + steps, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)
