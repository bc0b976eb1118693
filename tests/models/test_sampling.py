import pytest
import torch

from hfkd.models.sampling import GumbelNoise, sampling_processors

SCORES = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -float("inf")])
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "no_repeat_ngram_size": 0}


def draw(processors, rows, steps):
    prompt = torch.zeros(rows, 1, dtype=torch.long)
    return torch.stack([processors(prompt, SCORES.repeat(rows, 1)).argmax(-1) for _ in range(steps)])  # [steps, rows]


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected)[probabilities > 0].sum().item()


@pytest.mark.parametrize(
    ("settings", "shaped"),
    [
        ({}, SCORES),
        ({"temperature": 0.5}, SCORES / 0.5),
        ({"top_k": 3}, SCORES.where(SCORES >= 0.5, -torch.inf)),
        # softmax is .56 .21 .08 .03 .13: two tokens are the fewest that reach 0.65
        ({"top_p": 0.65}, SCORES.where(SCORES >= 1, -torch.inf)),
        # after temperature 2 they are .37 .23 .14 .08 .18: three are needed, so temperature comes first
        ({"temperature": 2.0, "top_p": 0.65}, (SCORES / 2).where(SCORES >= 0.5, -torch.inf)),
    ],
)
def test_draws_follow_the_shaped_softmax(settings, shaped):
    processors = sampling_processors(range(200), 10, torch.device("cpu"), **PLAIN | settings)
    draws = draw(processors, rows=200, steps=100)
    counts, probabilities = draws.flatten().bincount(minlength=6).double(), shaped.softmax(-1).double()
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts, probabilities) < 25  # 5 degrees of freedom: beyond once in 7,000


def test_draws_of_rows_steps_and_seeds_are_independent():
    """Pairs of draws fill the product distribution: 25 cells, 24 degrees of freedom."""
    first, second = (
        draw(sampling_processors(range(200), seed, torch.device("cpu"), **PLAIN), 200, 100) for seed in (10, 20)
    )
    probabilities = SCORES.softmax(-1).double()
    cells = torch.outer(probabilities, probabilities).flatten()
    for a, b in ((first[:-1], first[1:]), (first[:, :-1], first[:, 1:]), (first, second)):
        assert chi_square((a * 6 + b).flatten().bincount(minlength=36).double(), cells) < 60


def test_a_row_has_the_same_noise_in_any_batch():
    scores = torch.zeros(4, 50)
    together = GumbelNoise([3, 0, 7, 5], 10, scores.device)
    alone = GumbelNoise([7], 10, scores.device)
    for _ in range(3):
        assert torch.equal(together(None, scores)[2:3], alone(None, scores[:1]))


def test_the_ngram_block_counts_the_prompt_and_holds_against_any_noise():
    processors = sampling_processors(range(100), 10, torch.device("cpu"), **PLAIN | {"no_repeat_ngram_size": 2})
    prompt = torch.tensor([[4, 0, 3, 4]]).repeat(100, 1)
    drawn = processors(prompt, SCORES.repeat(100, 1)).argmax(-1)
    assert 0 not in drawn  # "4 0" was there, and 0 is the likeliest token
    assert {1, 2} <= set(drawn.tolist())


def test_temperature_zero_takes_the_likeliest():
    processors = sampling_processors(range(3), 10, torch.device("cpu"), **PLAIN | {"temperature": 0})
    assert draw(processors, 3, 2).tolist() == [[0] * 3] * 2
