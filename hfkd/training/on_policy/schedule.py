"""Which optimizer steps learn written responses, and whose."""

from typing import Literal

import numpy as np

Writer = Literal["student", "teacher"]


def writer_of(step: int, seed: int, share: float, seq_kd: bool) -> Writer | None:
    """Who writes the responses of optimizer step `step`, the first of which is 0; None: they are those of the rows.

    GKD (Agarwal et al., Algorithm 1): the student, with probability `share` (lambda); else with `seq_kd` the teacher.
    A function of seed and step, so that all ranks agree, and so does a run that is taken up again.
    """
    if np.random.default_rng([seed, step]).random() < share:
        return "student"
    return "teacher" if seq_kd else None
