"""Decides which optimizer steps train on generated responses, and of which network."""

from typing import Literal

import numpy as np

Writer = Literal["student", "teacher"]


def writer_of(step: int, seed: int, share: float, seq_kd: bool) -> Writer | None:
    """Which network generates the responses of optimizer step `step` (from 0); None: those in the dataset are used.

    GKD (Agarwal et al., Algorithm 1): the student, with probability `share` (lambda); else with `seq_kd` the teacher.
    Depends on seed and step only, so that all ranks, and a resumed run, agree.
    """
    if np.random.default_rng([seed, step]).random() < share:
        return "student"
    return "teacher" if seq_kd else None
