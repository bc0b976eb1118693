"""Objectives of one's own that run and train something else: refused, or warned of, when the trainer is built."""

from dataclasses import dataclass

import pytest
import torch
from task_toys import Pixels, masks
from text_toys import TokenRows, language_model, taught_model
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer, Objective
from hfkd.data.text_collate import TokenCollator
from hfkd.losses.base import Requirements, Temperature, Weighting
from hfkd.losses.items import image_items
from hfkd.losses.slot_values import one_per_item


def make(folder, classes=CLASSES, **slots):
    given = Net(classes=classes), teacher(classes), arguments(folder / "run")
    return DistillationTrainer(*given, train_dataset=Rows(classes=classes), **slots)


def squares(items, temperature=None):
    return (items.student.logits - items.teacher.logits).square()


def not_softened_by_rows(items, temperature):
    """z / T with T [N] beside z [N, C], which is an error unless N = C."""
    taught, learned = (z.logits / temperature for z in (items.teacher, items.student))
    return nn.functional.kl_div(learned.log_softmax(-1), taught.softmax(-1), reduction="none").sum(-1)


def overwriting(items, temperature):
    z = items.student.logits
    z -= z.mean(-1, keepdim=True)
    return z.square().sum(-1)


def overwriting_temperature(items, temperature):
    temperature.clamp_(max=1.5)
    return squares(items).mean(-1) * temperature


class Listed(nn.Module, Objective):
    """Its layers are in a plain list, which nn.Module does not look into."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(CLASSES, CLASSES)]

    def forward(self, items, temperature):
        return (self.layers[0](items.student.logits) - items.teacher.logits).square().mean(-1)


class Plain(Objective):
    """Not a module, so that nothing looks for its layer."""

    def __init__(self):
        self.layer = nn.Linear(CLASSES, CLASSES)

    def __call__(self, items, temperature):
        return (self.layer(items.student.logits) - items.teacher.logits).square().mean(-1)


def closed_over():
    layer = nn.Linear(CLASSES, CLASSES)
    return lambda items, temperature: (layer(items.student.logits) - items.teacher.logits).square().mean(-1)


class Connected(nn.Module, Objective):
    """A map of the student's through a layer, beside the teacher's: as `kind` says, with a mistake."""

    level = "sample"

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def requirements(self):
        return Requirements(student=("conv",), teacher=("conv",))

    def build(self, context):
        (channels, *_), (wanted, *_) = context.student.shape("conv"), context.teacher.shape("conv")
        layer = nn.Conv2d(channels, wanted, 1)
        self.layer = [layer] if self.kind == "listed" else layer

    def forward(self, items, temperature):
        mine, its = items.student.features["conv"], items.teacher.features["conv"]
        mine = {"in place": mine.relu_, "detached": mine.detach}.get(self.kind, lambda: mine)()
        layer = self.layer[0] if self.kind == "listed" else self.layer
        difference = (layer(mine) - its).square()
        return difference.mean() if self.kind == "reduced" else difference.mean((1, 2, 3))


WRONG = {
    "detached": (lambda i, t: (i.student.logits.detach() - i.teacher.logits).square().mean(-1), "no gradient for the"),
    "a module that trains alone": (lambda i, t: nn.Linear(CLASSES, 1)(i.teacher.logits)[:, 0], "no gradient for the"),
    "in place": (overwriting, r"the objective changes items.student.logits in place"),
    "the temperature, in place": (overwriting_temperature, "the objective changes the temperature in place"),
    "over the items": (lambda i, t: squares(i).mean(0), "returned 5 numbers for 2 items, as many as there are classes"),
    "T beside logits": (not_softened_by_rows, r"works for 5 items.*but not for 2.*temperature.unsqueeze\(-1\)"),
    "a scalar": (lambda i, t: squares(i).mean(), r"returned a tensor of shape \(\) for 2 items"),
    "no tensor": (lambda i, t: squares(i).mean(-1).tolist(), "the objective returned list"),
    "layers in a list": (Listed(), r"trainable parameters of shape \[5, 5\], \[5\] that are not its own.*nn.Module"),
    "no module": (Plain(), "trainable parameters of shape .* that are not its own"),
    "a layer of a closure": (closed_over(), "trainable parameters of shape .* that are not its own"),
    "a term": ([(1.0, "kd"), (2.0, Plain())], "trainable parameters of shape .* that are not its own"),
    "features: a list": (Connected("listed"), r"trainable parameters of shape .*\[16, 4, 1, 1\]"),
    "features: detached": (Connected("detached"), "no gradient for the student"),
    "features: in place": (Connected("in place"), r"changes items.student.features\['conv'\] in place"),
    "features: reduced": (Connected("reduced"), r"the objective returned \(\) for 2 samples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_train_something_else_is_refused(tmp_path, name):
    objective, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make(tmp_path, objective=objective)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (lambda items: items.student.logits.sub_(1).amax(-1).relu(), "changes items.student.logits in place"),
        (lambda items: items.teacher.logits.div_(2).amax(-1).exp(), "changes items.teacher.logits in place"),
        (lambda items: items.teacher.logits.softmax(-1).amax(0), "returned 5 numbers for 2 items, as many as there"),
    ],
)
@pytest.mark.parametrize("kind", ["temperature", "weighting"])
def test_so_are_temperatures_and_weightings(tmp_path, kind, slot, message):
    with pytest.raises(ValueError, match=f"the {kind} {message}"):
        make(tmp_path, **{kind: slot})


def test_two_classes_are_not_taken_for_two_items(tmp_path):
    with pytest.raises(ValueError, match="works for 2 items.*but not for 3"):
        make(tmp_path, classes=2, objective=not_softened_by_rows)
    with pytest.raises(ValueError, match="the weighting returned 2 numbers for 3 items"):
        make(tmp_path, classes=2, weighting=lambda items: items.teacher.logits.softmax(-1).amax(0))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            lambda i, t: (i.student.logits.argmax(-1) != i.student.logits.argmax(-1)).float(),
            "no gradient for the student",
        ),
        (lambda student, teacher: nn.functional.mse_loss(student, teacher), "The objective fails on the first 2 items"),
    ],
)
def test_what_may_be_meant_is_said(tmp_path, caplog, objective, message):
    make(tmp_path, objective=objective)
    assert message in caplog.text


class Late(nn.Module, Objective):
    """Its layer is made at the first call, when its width is known."""

    def forward(self, items, temperature):
        if not hasattr(self, "layer"):
            self.layer = nn.Linear(items.student.num_classes, CLASSES)
        return (self.layer(items.student.logits) - items.teacher.logits).square().mean(-1)


class LateOnMaps(nn.Module, Objective):
    level = "sample"

    def requirements(self):
        return Requirements(student=("conv",), teacher=("conv",))

    def forward(self, items, temperature):
        mine, its = items.student.features["conv"], items.teacher.features["conv"]
        if not hasattr(self, "layer"):
            self.layer = nn.Conv2d(mine.shape[1], its.shape[1], 1)
        return (self.layer(mine) - its).square().mean((1, 2, 3))


class LateTemperature(nn.Module, Temperature):
    def forward(self, items):
        if not hasattr(self, "t"):
            self.t = nn.Parameter(torch.tensor(2.0))
        return self.t.expand(len(items))


class LateWeights(nn.Module, Weighting):
    def forward(self, items):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", items.teacher.entropy(1.0).mean())
        return items.teacher.entropy(1.0) / self.mean


class Prepared(nn.Module, Objective):
    """Its width is known at the first call too, but its parameters are there before."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(CLASSES)

    def forward(self, items, temperature):
        return (self.layer(items.student.logits) - items.teacher.logits).square().mean(-1)


@pytest.mark.parametrize(
    ("slots", "made"),
    [
        ({"objective": Late()}, "the objective makes layer.bias, layer.weight"),
        ({"objective": ["kd", LateOnMaps()]}, "the objective makes layer.bias, layer.weight"),
        ({"temperature": LateTemperature()}, "the temperature makes t"),
        ({"weighting": LateWeights()}, "the weighting makes mean"),
    ],
)
def test_layers_that_are_made_in_the_first_step_are_refused(tmp_path, slots, made):
    """No optimizer would have them."""
    with pytest.raises(ValueError, match=f"{made} when it is called, too late for the optimizer"):
        make(tmp_path, **slots)


def test_lazy_layers_are_made_where_their_shape_is_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"objective.layer.weight, .* of the loss has no shape yet.*context.num_classes"
    ):
        make(tmp_path, objective=Prepared())


class Baseless(nn.Module):
    """It has all that an objective has, but the base class."""

    level = "sample"

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CLASSES, CLASSES)

    def parameter_groups(self):
        return [{"params": list(self.parameters()), "lr": 1e-5}]

    def forward(self, items, temperature):
        return (self.layer(items.student.logits) - items.teacher.logits).square().mean(-1)


class NeedsIndex:
    def requirements(self):
        return Requirements(index=True)

    def __call__(self, items):
        return torch.full((len(items),), 2.0)


@dataclass
class Compared(nn.Module, Objective):
    """torch looks for modules in sets."""

    scale: float = 2.0

    def __post_init__(self):
        super().__init__()

    def forward(self, items, temperature):
        return self.scale * squares(items).mean(-1)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"objective": Baseless()}, r"Baseless has parameter_groups, level, .*class Baseless\(nn.Module, Objective\)"),
        ({"objective": ["kd", (2.0, Baseless())]}, "the objective Baseless has parameter_groups, level"),
        ({"weighting": NeedsIndex()}, r"the weighting NeedsIndex has requirements, .*class NeedsIndex\(Weighting\)"),
        ({"temperature": NeedsIndex()}, "the temperature NeedsIndex has requirements"),
        ({"temperature": LateWeights()}, "the temperature LateWeights has requirements"),
        ({"objective": Compared()}, r"the objective Compared is an nn.Module that cannot be hashed.*eq=False"),
    ],
)
def test_what_a_slot_says_of_itself_is_read_or_refused(tmp_path, slots, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **slots)


class LearnedOutside(Temperature):
    """Not a module, so that nothing looks for its parameter."""

    def __init__(self):
        self.t = nn.Parameter(torch.tensor(2.0))

    def __call__(self, items):
        return self.t.expand(len(items))


class LearnedWeights(nn.Module, Weighting):
    def __init__(self, trains=True):
        super().__init__()
        self.layer = nn.Linear(CLASSES, 1).requires_grad_(trains)

    def forward(self, items):
        return self.layer(items.teacher.logits).squeeze(-1).sigmoid()


def test_what_nothing_would_train_is_refused_of_temperatures_and_weightings(tmp_path):
    with pytest.raises(ValueError, match=r"the temperature uses trainable .*class Mine\(nn.Module, Temperature\)"):
        make(tmp_path, temperature=LearnedOutside())
    for weighting in (LearnedWeights(), LearnedWeights().forward):
        with pytest.raises(ValueError, match=r"the weighting has trainable parameters of shape \[1, 5\], \[1\], and w"):
            make(tmp_path, weighting=weighting)
    make(tmp_path, weighting=LearnedWeights(trains=False)).train()


def of_one_temperature(items, temperature):
    """The temperature that was chosen is not read."""
    z, s = items.log_probabilities(torch.full_like(temperature, 2.0))
    return (z.exp() * (z - s)).sum(-1)


def of_its_own(items, temperature):
    z, s = items.log_probabilities(temperature)
    return (z.exp() * (z - s)).sum(-1)


class Unsoftened(Objective):
    softens = False

    def __call__(self, items, temperature):
        return of_one_temperature(items, temperature)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ({"objective": of_one_temperature, "temperature": "energy"}, True),
        ({"objective": of_one_temperature, "temperature": 2.0}, True),
        ({"objective": of_one_temperature}, False),
        ({"objective": ["kd", of_one_temperature], "temperature": "energy"}, False),
        ({"objective": of_its_own, "temperature": "energy"}, False),
        ({"objective": Unsoftened(), "temperature": 2.0}, False),
    ],
)
def test_a_temperature_that_is_not_read_is_said(tmp_path, caplog, slots, said):
    make(tmp_path, **slots)
    assert ("the same at other temperatures, so that" in caplog.text) == said


def confident(items, temperature):
    """[N, 1] beside [N] makes [N, N] of both, whose mean over the last dimension is [N] again."""
    confidence = items.teacher.logits.softmax(-1).amax(-1, keepdim=True)
    return (confidence * of_its_own(items, temperature)).mean(-1)


class Batch(Objective):
    def requirements(self):
        return Requirements(relations=True)

    def __call__(self, items, temperature):
        return confident(items, temperature)


ALONE = "of the first items other values alone than among"


def test_values_that_depend_on_other_items_are_said(tmp_path, caplog):
    make(tmp_path, objective=confident)
    assert ALONE in caplog.text
    assert "[items, 1] beside others [items]" in caplog.text
    caplog.clear()
    for objective in (of_its_own, Batch(), lambda i, t: of_its_own(i, t) * torch.rand(len(i))):
        make(tmp_path, objective=objective)
    assert ALONE not in caplog.text


class Relating(Objective):
    """Nothing an item, and a relation between two."""

    def requirements(self):
        return Requirements(relations=True, items=3)

    def __call__(self, items, temperature):
        return items.teacher.logits.new_zeros(len(items))

    def relations(self, items, temperature):
        assert len(items) >= 3
        gram = items.student.logits @ items.student.logits.T
        return gram.square().mean(-1)


class Frozen(Plain):
    """A layer that is not meant to train."""

    def __init__(self):
        super().__init__()
        self.layer.requires_grad_(False)


@pytest.mark.parametrize("name", ["plain", "relations", "frozen", "whole batches", "features"])
def test_right_ones_are_left_alone(tmp_path, caplog, name):
    ones = {
        "plain": lambda i, t: squares(i).mean(-1),
        "relations": Relating(),
        "frozen": Frozen(),
        "whole batches": lambda i, t: (i.student.logits * torch.ones(8, 1)).square().mean(-1),
        "features": Connected("right"),
    }
    trainer = make(tmp_path, objective=ones[name])
    assert ("The objective fails" in caplog.text) == (name == "whole batches")
    assert "no gradient for the student" not in caplog.text
    trainer.train()


def test_values_on_another_device_are_named():
    items = image_items(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="the weighting returned a tensor on meta, and the items are on cpu"):
        one_per_item(items, "weighting", torch.ones(2, device="meta"))


def centred(items, temperature):
    """The difference of logits without its mean over the items, which another batch of items has another of."""
    difference = items.student.logits - items.teacher.logits
    return (difference - difference.mean(0)).square().mean(-1)


def of_each_sample(items, temperature):
    """Each item's share of its sample's divergence: an item alone has all of it."""
    values = squares(items).mean(-1)
    return values / items.mean_over_sample(values).detach()


class Declared(Objective):
    def requirements(self):
        return Requirements(relations=True)

    def __call__(self, items, temperature):
        return centred(items, temperature)


def tokens(folder, objective, **settings):
    args, networks = arguments(folder / "run", **settings), (language_model(), taught_model())
    keywords = {"train_dataset": TokenRows(), "data_collator": TokenCollator(0)}
    return DistillationTrainer(*networks, args, objective=objective, **keywords)


def pixels(folder, objective, **settings):
    args = arguments(folder / "run", task="semantic_segmentation", **settings)
    return DistillationTrainer(Pixels(4), Pixels(8), args, train_dataset=masks(), objective=objective)


RELATED = "gives .* items other values alone than among .* Requirements"


def test_what_compares_items_is_refused_where_they_come_in_chunks(tmp_path):
    for objective in (centred, of_each_sample):
        with pytest.raises(ValueError, match=RELATED):
            tokens(tmp_path, objective, loss_chunk_size=4)
        with pytest.raises(ValueError, match=RELATED):  # in strips, whenever the slots allow it
            pixels(tmp_path, objective)
        tokens(tmp_path / "whole", objective)
    pixels(tmp_path / "declared", Declared()).train()


def test_whole_samples_are_compared_where_there_are_no_chunks(tmp_path, caplog):
    tokens(tmp_path, of_each_sample)
    assert ALONE not in caplog.text
    tokens(tmp_path, centred)
    assert ALONE in caplog.text


def test_what_treats_items_alone_goes_in_chunks(tmp_path):
    noisy = [lambda i, t: squares(i).mean(-1), lambda i, t: (squares(i) * torch.rand(len(i), 1)).mean(-1)]
    for objective in noisy:
        tokens(tmp_path / "tokens", objective, loss_chunk_size=4, max_steps=1).train()
        pixels(tmp_path / "pixels", objective, max_steps=1)
