"""Checks that do not change the random state of training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch at the end of the context."""
    python, legacy = random.getstate(), np.random.get_state()
    # All devices would be initialised otherwise.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        if apple is not None:
            torch.mps.set_rng_state(apple)
