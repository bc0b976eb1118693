"""Statistics of generated responses for the log, and with `log_completions` the texts themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfkd.utils.files import write_atomically
from hfkd.utils.json_file import json_lines
from hfkd.utils.numbers import for_log

FOLDER = "completions"


class ResponseStatistics:
    """Since the last log: share of steps with the student's responses, mean length, share that ended."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.forget()

    def forget(self) -> None:
        self._steps, self._by_student = 0, 0
        self._sums = [0.0, 0.0, 0.0]  # responses, tokens, responses with an end of sequence

    def step(self, by_student: bool) -> None:
        self._steps += 1
        self._by_student += by_student

    def add(self, responses: Sequence[Sequence[int]], ends: set[int]) -> None:
        ended = sum(response[-1] in ends for response in responses)
        found = (len(responses), sum(map(len, responses)), ended)
        self._sums = [a + b for a, b in zip(self._sums, found, strict=True)]

    def read(self) -> dict[str, float]:
        """Return the means over all ranks, and reset. Must be called on every rank."""
        if not self._steps:
            return {}
        sums = torch.tensor(self._sums, device=self.accelerator.device)
        count, tokens, ended = self.accelerator.reduce(sums).tolist()
        found = {"on_policy_steps": self._by_student / self._steps}
        if count:
            found |= {"completion_length": tokens / count, "completion_ended": ended / count}
        self.forget()
        return for_log(found)


def keep_texts(folder: str | Path, step: int, rows: Sequence[dict[str, Any]], accelerator: Accelerator) -> None:
    """Write this rank's responses for optimizer step `step`, counted from 1, in the order of their rows.

    Each rank writes its own file, so that none waits for a rank that has run out of batches.
    """
    several = accelerator.num_processes > 1
    name = f"step-{step}.rank-{accelerator.process_index}.jsonl" if several else f"step-{step}.jsonl"
    write_atomically(Path(folder) / FOLDER / name, json_lines(sorted(rows, key=lambda row: row["row"])))
