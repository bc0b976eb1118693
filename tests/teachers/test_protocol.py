"""One protocol for a live teacher, several, and what was stored of one: the trainer asks nothing else."""

import inspect

import pytest
import torch
from scan_job import packed
from text_toys import VOCAB, language_model, taught_model, token_dataset
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.tasks.causal_lm import CausalLM
from hfkd.teachers import (
    CachedTeacher,
    CachedTextTeacher,
    FrozenTeacher,
    Teacher,
    TeacherByRow,
    TeacherEnsemble,
    build_text_cache,
    scan,
)
from hfkd.utils.targets import Targets

QUIET = {"progress_bar": False}


@pytest.fixture
def stored(tmp_path):
    build_text_cache(taught_model(), token_dataset(), tmp_path / "cache", k=VOCAB, temperatures=2.0, **QUIET)
    return CachedTextTeacher(tmp_path / "cache")


@pytest.fixture
def every(stored, tmp_path):
    """Each kind, and how many networks run for it."""
    return [
        (FrozenTeacher(teacher()), 1),
        (TeacherEnsemble([FrozenTeacher(teacher()), FrozenTeacher(Net(seed=3))]), 2),
        (TeacherByRow({"a": FrozenTeacher(teacher()), "b": FrozenTeacher(Net(seed=3))}), 2),
        (CachedTeacher(FrozenTeacher(teacher()), packed(), tmp_path / "images"), 1),
        (stored, 0),
    ]


def test_each_kind_keeps_the_protocol(every):
    wanted = {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(Teacher).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    assert {
        "check_use",
        "at_targets",
        "hidden",
        "collator",
        "known",
        "frozen",
        "placed",
        "channels_last",
        "flush",
        "reads",
        "probes",
    } == set(wanted)
    for one, networks in every:
        assert isinstance(one, Teacher)
        assert len(one.networks) == networks
        for name, parameters in wanted.items():
            assert list(inspect.signature(getattr(type(one), name)).parameters) == parameters, (type(one), name)
        with one.frozen():
            assert not any(network.training for network in one.networks)
        one.flush()


def test_live_and_stored_outputs_of_target_tokens_are_the_same(stored):
    """With every class stored, each item's energy, entropy and divergence."""
    rows = list(token_dataset())
    batch = stored.collator(TokenCollator(0))(rows)
    targets = Targets.of(batch)
    network, student = taught_model(), language_model()
    live = FrozenTeacher(network)
    said, known = (
        one.at_targets(batch, targets, VOCAB, on_heads)[0] for one, on_heads in ((live, True), (stored, False))
    )
    assert said.size == known.size == len(targets) > 0
    torch.testing.assert_close(known.energy(4.0), said.energy(4.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(known.entropy(3.0), said.entropy(3.0), rtol=1e-4, atol=1e-4)
    other = FrozenTeacher(student).at_targets(batch, targets, VOCAB, True)[0]
    two = torch.full((len(targets),), 2.0)
    divergences = [(p.exp() * (p - q)).sum(-1) for p, q in (one.log_probabilities(other, two) for one in (said, known))]
    torch.testing.assert_close(*divergences, rtol=1e-2, atol=1e-4)


def test_a_scan_of_a_stored_teacher_takes_no_pass_and_finds_what_the_live_one_does(stored):
    found = scan(stored, token_dataset(), **QUIET)
    live = scan(taught_model(), token_dataset(), collate=TokenCollator(0), task=CausalLM(), **QUIET)
    torch.testing.assert_close(found.energy, live.energy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropy, live.entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda one: one.hidden({}), "CachedTextTeacher has no hidden states: set loss_chunk_size to 0"),
        (lambda one: one(input_ids=torch.zeros(1, 2)), "has only a few logits of each target token"),
    ],
)
def test_what_a_stored_teacher_cannot_serve_is_said(stored, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(stored)


def test_what_several_teachers_cannot_serve_is_said():
    several = TeacherEnsemble([FrozenTeacher(teacher()), FrozenTeacher(Net(seed=3))])
    with pytest.raises(ValueError, match="no common hidden state"):
        several.hidden({"pixel_values": Rows().images})


def test_the_trainer_takes_any_teacher_of_the_protocol(tmp_path):
    """One that is none of ours."""

    class Elsewhere(Teacher):
        """A table of logits by the image's index, as a server might hold it."""

        def __init__(self, table):
            self.table = table

        def __call__(self, *, each=False, **inputs):
            return self.table[inputs["index"]]

    data = packed()
    table = FrozenTeacher(teacher())(pixel_values=torch.stack([row["pixel_values"] for row in data]))
    args = arguments(tmp_path, ce_weight=0.0, kd_weight=1.0)
    made = DistillationTrainer(Net(), Elsewhere(table), args, train_dataset=data)
    made.train()
    assert made.state.log_history[0]["kd"] > 0
