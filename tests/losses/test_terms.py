"""Several objectives in one equation."""

import pytest
import torch
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationArguments, DistillationLoss, DistillationTrainer, Objective
from hfkd.losses.counts import Counts
from hfkd.losses.items import image_items, token_items
from hfkd.losses.logits import DIST, DKD, KD, Average
from hfkd.losses.terms import Terms
from hfkd.utils.parsing import parse
from hfkd.utils.setting_types import typed
from hfkd.utils.targets import IGNORED

LABELS = torch.tensor([[4, IGNORED, 2, 3, IGNORED], [IGNORED] * 5, [1, 2, 3, 4, 5]])  # 2 targets, none, 4


class MeanLogit(Objective):
    """l_s = a^2 (mean_n v_n - mean_n z_n)^2, means over the sample's items and classes; a trains"""

    level = "sample"
    softens = False

    def __call__(self, items, temperature):
        student, taught = (items.sample_means(z.logits.double()) for z in (items.student, items.teacher))
        return (student - taught).mean(-1) ** 2


class Scaled(nn.Module, Objective):
    softens = False
    level = "sample"

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, items, temperature):
        return self.a * items.sample_means(items.student.logits).square().mean(-1)

    def parameter_groups(self):
        return [{"params": [self.a], "lr": 0.5}]


def tokens(seed=0):
    g = torch.Generator().manual_seed(seed)
    student, taught = torch.randn(2, 3, 5, 7, generator=g, dtype=torch.float64)
    return token_items(student.requires_grad_(), taught, LABELS)


def images(seed=0):
    g = torch.Generator().manual_seed(seed)
    student, taught = torch.randn(2, 8, 5, generator=g, dtype=torch.float64)
    return image_items(student.requires_grad_(), taught, torch.arange(8) % 5)


def value(objective, items, count=None, **keywords):
    return DistillationLoss(objective, 4.0, "entropy", **keywords)(items, count)


@pytest.mark.parametrize("items", [tokens(), images()], ids=["tokens", "images"])
@pytest.mark.parametrize("counts", [None, Counts(18, 18, 6)])
def test_a_sum_is_the_sum_of_its_terms_each_at_its_level(items, counts):
    together, parts = value([(1, "kd"), (100, MeanLogit()), (0.5, "dist")], items, counts)
    ce = value("kd", items, counts, kd_weight=0.0)[0]
    each = [value(o, items, counts, ce_weight=0.0)[0] for o in ("kd", MeanLogit(), "dist")]
    torch.testing.assert_close(together, ce + each[0] + 100 * each[1] + 0.5 * each[2])
    assert {"ce", "kd", "meanlogit", "dist", "relations"} <= parts.keys()
    torch.testing.assert_close(parts["kd"], value("kd", items, counts)[1]["kd"])
    torch.testing.assert_close(parts["meanlogit"], value(MeanLogit(), items, counts)[1]["meanlogit"])


def test_terms_on_samples_are_logged_in_their_own_order():
    """In that of a set the ranks' numbers would be added up crosswise."""
    names = [f"meanlogit{more}" for more in ("", *(f"_{k}" for k in range(2, 9)))]
    parts = value([(1, MeanLogit()) for _ in names], images())[1]
    assert [name for name in parts if name in names] == names


def test_one_term_is_its_objective_bit_for_bit():
    alone, parts = value("dkd(warmup_epochs=0)", images())
    for spec in (
        "1 * dkd(warmup_epochs=0)",
        ["dkd(warmup_epochs=0)"],
        [(1, DKD(warmup_epochs=0))],
        DKD(warmup_epochs=0),
    ):
        found, its = value(spec, images())
        assert torch.equal(found, alone)
        assert its.keys() == parts.keys()
    assert not isinstance(DistillationLoss("kd").objective, Terms)


@pytest.mark.parametrize(
    ("spec", "pairs"),
    [
        ("kd + 100*dkd(beta=2.0)", [(1, "KD"), (100, "DKD")]),
        ("kd*2+1e-3 * dist + jsd", [(2, "KD"), (1e-3, "DIST"), (1, "JSD")]),
        (["kd", "2 * dist"], [(1, "KD"), (2, "DIST")]),
        ([(3, "kd + 2*dist"), KD()], [(3, "KD"), (6, "DIST"), (1, "KD")]),
        ((2, "kd"), [(2, "KD")]),
        ("average(objective='dkd(beta=2.0)') + kd", [(1, "Average"), (1, "KD")]),
    ],
)
def test_terms_are_written_as_a_string_or_a_list(spec, pairs):
    terms = DistillationLoss(spec).terms
    assert [(term.coefficient, type(term.objective).__name__) for term in terms] == pairs


def test_terms_of_one_name_are_told_apart_and_take_none_of_the_losss_own_names():
    class CE(Objective):
        def __call__(self, items, temperature):
            return items.student.logits.sum(-1)

    assert [term.name for term in DistillationLoss(["kd", "kd(scale='none')", CE()]).terms] == ["kd", "kd_2", "ce_2"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kd - dkd", "cannot be read"),
        ("kd + ", "cannot be read"),
        ("2 * (kd + dkd)", "cannot be read: write terms"),
        ("kd * dkd", "cannot be read"),
        ("kd + 3", "cannot be read"),
        ("True * kd + dkd", "cannot be read"),
        ("kd + __import__('os')", "cannot be read: write name or name"),
        ("kd + nothing", "unknown objective 'nothing'"),
        ("kd + 0 * dkd", "coefficient 0 of a term must be a finite number above 0"),
        ("kd + -1 * dkd", "coefficient -1 of a term must be"),
        ("kd + 1e999 * dkd", "coefficient inf of a term must be"),
        ([], "is empty"),
        ([(1, "kd", 2)], r"pass a slot, or a pair \(coefficient, slot\)"),
        (["kd", 5], "objective 5 is a int"),
        ("kd + dkd(gamma=1)", "has no argument 'gamma'"),
        ("kd + " * 500 + "kd", "cannot be read"),
    ],
)
def test_what_is_no_sum_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(spec)


@pytest.mark.parametrize("temperature", ["energy", "learned", lambda items: torch.ones(len(items))])
def test_a_temperature_that_nothing_reads_is_refused(temperature):
    with pytest.raises(ValueError, match=r"no term of .*MeanLogit.* uses a temperature: add one that does \(kd \+ "):
        DistillationLoss(MeanLogit(), temperature)
    DistillationLoss([KD(), MeanLogit()], temperature)
    DistillationLoss(MeanLogit(), 2.0)


def test_wrappers_hand_everything_on():
    wrapped = Average(Scaled())
    assert not wrapped.softens
    assert wrapped.level == "sample"
    for objective in (wrapped, [(2, wrapped), (1, "kd")]):
        loss = DistillationLoss(objective)
        assert [p.item() for p in loss.parameters()] == [1]
        assert len(loss.state_dict()) == 1
        assert loss.objective.parameter_groups()[0]["lr"] == 0.5


def test_one_object_as_two_terms_is_refused():
    one = Scaled()
    with pytest.raises(ValueError, match="the same objective object is used for two terms"):
        DistillationLoss([one, (2, one)])


def test_requirements_and_properties_are_joined():
    loss = DistillationLoss(["kd", DIST(), "dkd(warmup_epochs=20)"])
    assert loss.requirements.relations
    assert loss.requirements.epochs == 20
    assert loss.objective.divergence
    assert repr(DistillationLoss("kd + 100 * dist").objective) == f"{KD()!r} + 100 * {DIST()!r}"


def test_a_settings_file_lists_terms(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("objective:\n- kd\n- 2 * dkd(beta=2.0)\noutput_dir: out\nuse_cpu: true\nbf16: false\n")
    (args,) = parse([DistillationArguments], ["--config", str(file)])
    assert args.objective == "kd + 2 * dkd(beta=2.0)"
    file.write_text("weighting:\n- entropy\noutput_dir: out\n")
    with pytest.raises(ValueError, match="weighting: "):
        parse([DistillationArguments], ["--config", str(file)])
    assert typed("kd", DistillationArguments.__dataclass_fields__["objective"].type, "") == "kd"


def test_the_trainer_logs_each_term_by_its_name(tmp_path):
    args = arguments(tmp_path, objective="kd + 0.5 * dist", max_steps=1)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"kd", "dist", "ce", "relations"} <= logged.keys()
    by_hand = 0.1 * logged["ce"] + 0.9 * (logged["kd"] + 0.5 * logged["dist"] + logged["relations"])
    assert logged["loss"] == pytest.approx(by_hand, rel=1e-4)
