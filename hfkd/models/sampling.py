"""Sampling whose random numbers belong to a row, not to a batch.

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
    """scores + G with G from Gumbel(0, 1), whose argmax is a draw from softmax(scores): the Gumbel-max trick.

    Row b draws its noise from a generator of its own, seeded by (seed, rows[b]), so a row's text does not depend on its
    neighbours, the batch size or the number of processes, as it does when a batch shares one generator. A row is a
    number, or several: (row, step) draws anew in each step. Must come last: whatever shapes the distribution has to
    come before the draw.
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
    """transformers' order (n-gram block, temperature, top-k, top-p), then the draw; temperature 0 takes the likeliest.

    For `generate(do_sample=False)`: with do_sample=True transformers puts temperature, top-k and top-p after ours.
    The n-gram block sees the prompt too, as it does in the published evaluations: an answer cannot repeat
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
