"""One way from a key, such as (seed, step, rank), to the seed of a random generator."""

__all__ = ["generator_of", "seed_of"]

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """Returns the seed in [0, 2^64) that belongs to a key: keys that differ share no stream."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator_of(*key: int) -> torch.Generator:
    """Returns the CPU generator that belongs to a key."""
    return torch.Generator().manual_seed(seed_of(*key) >> 1)
