"""The random state: kept by checks, so that they do not change that of training, and compared."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


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


def seed_generators(seed: int) -> None:
    """Seed Python, numpy and torch on the CPU; transformers' `set_seed` would seed every device of the process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of torch's default generators of the CPU and of `device`, which change when a number is drawn."""
    host = torch.get_rng_state()
    if device.type == "cuda":
        return host, torch.cuda.get_rng_state(device)
    return (host, torch.mps.get_rng_state()) if device.type == "mps" else (host,)
