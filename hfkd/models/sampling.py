"""Sampling with separate random numbers for each row.

B rows of a batch, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

Row = int | tuple[int, ...]


class GumbelNoise(LogitsProcessor):
    """scores + G with G from Gumbel(0, 1), whose argmax is a sample from softmax(scores): the Gumbel-max trick.

    Row b has its own generator, seeded by (seed, rows[b]), so that its text does not depend on the other rows, the
    batch size or the number of processes, unlike with one generator per batch. A row is one number or several: (row,
    step) gives new samples in each step. This must be the last processor, after all that change the distribution.
    """

    def __init__(self, rows: Sequence[Row], seed: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(_row_seed(seed, row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        exponential = torch.empty_like(scores, dtype=torch.float32)  # [B, V]
        for noise, generator in zip(exponential, self.generators, strict=True):
            noise.exponential_(generator=generator)
        # -log of an Exp(1) number is a Gumbel number; the clamp keeps an exact 0 from becoming infinity
        return scores.float() - exponential.clamp(min=torch.finfo(torch.float32).tiny).log()


def _row_seed(seed: int, row: Row) -> int:
    numbers = (row,) if isinstance(row, int) else row
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0])


def sampling_processors(
    rows: Sequence[Row],
    seed: int,
    device: torch.device,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    no_repeat_ngram_size: int,
) -> LogitsProcessorList:
    """Processors in transformers' order (n-grams, temperature, top-k, top-p), then sampling; temperature 0 is greedy.

    They are meant for `generate(do_sample=False)`: with do_sample=True transformers would add temperature, top-k and
    top-p after them. The n-gram block includes the prompt, as in the published evaluations: an answer cannot repeat
    `no_repeat_ngram_size` tokens of its question.
    """
    steps = LogitsProcessorList()
    if no_repeat_ngram_size:
        steps.append(NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    if temperature == 0:
        return steps
    if temperature != 1:
        steps.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    steps.append(GumbelNoise(rows, seed, device))
    return steps
