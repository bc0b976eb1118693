"""The teacher is its owner's: frozen while it is used, and afterwards as it was."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from text_toys import TokenRows, taught_model, token_dataset
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.models import Peers
from hfkd.teachers import FrozenTeacher, build_text_cache, scan
from hfkd.teachers.freezing import Freezing


class Partly(Net):
    """In training mode, but for its normalisation; its head does not train. As somebody left it."""

    def __init__(self):
        super().__init__(16, seed=1)
        self.norm, self.drop = nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.train()
        self.norm.eval()
        self.head.requires_grad_(False)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


def seen(network):
    """What its owner can see of a network."""
    modes = [module.training for module in network.modules()]
    tensors = network.state_dict(keep_vars=True)
    return modes, {n: (t.requires_grad, t.stride(), t.detach().clone().tolist()) for n, t in tensors.items()}


def trainer(folder, taught, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "temperature") if k in keywords}
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(8, seed=3)}
    return DistillationTrainer(Net(), taught, arguments(folder, **keywords), **rows, **slots)


@pytest.mark.parametrize("several", [False, True])
def test_whatever_is_done_with_the_trainer_it_is_as_it_was(tmp_path, several):
    networks = [Partly(), teacher().train()][: 1 + several]
    before = [seen(network) for network in networks]

    def unchanged():
        return [seen(network) for network in networks] == before

    slots = {"objective": "average", "kd_weight": 1.0} if several else {"temperature": "energy(ratio=0.2)"}
    made = trainer(tmp_path, networks if several else networks[0], evaluate_kl=True, **slots)
    assert unchanged()
    made.scan_training_set()
    assert unchanged()
    made.train()
    assert unchanged()
    made.evaluate()
    assert unchanged()
    made.teacher(pixel_values=Rows().images[:2])
    assert unchanged()
    made.step = lambda *a: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.train()
    assert unchanged()


def test_it_does_not_matter_how_its_owner_left_it(tmp_path):
    """Dropout, gradients, batch norm: none of them is at work while it teaches."""
    found = []
    for taught in (Partly(), Partly().eval().requires_grad_(False)):
        made = trainer(tmp_path, taught, evaluate_kl=True)
        made.train()
        found.append([*made.model.state_dict().values(), torch.tensor(made.evaluate()["eval_kl"])])
        assert all(p.grad is None for p in taught.parameters())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_in_training_it_is_frozen_and_laid_out_as_the_student(tmp_path):
    taught, during = Partly(), []

    class Watched(DistillationTrainer):
        def compute_loss(self, *a, **k):
            during.append((taught.training, taught.conv.weight.requires_grad, taught.conv.weight.is_contiguous()))
            return super().compute_loss(*a, **k)

    Watched(Net(), taught, arguments(tmp_path), train_dataset=Rows()).train()
    assert set(during) == {(False, False, False)}


def test_a_student_copied_from_it_later_learns(tmp_path):
    taught = teacher()
    trainer(tmp_path / "first", taught).train()
    made = DistillationTrainer(copy.deepcopy(taught), taught, arguments(tmp_path / "second"), train_dataset=Rows())
    made.train()
    assert not torch.equal(made.model.conv.weight, taught.conv.weight)
    save_file(taught.state_dict(), tmp_path / "teacher.safetensors")  # which takes no channels_last


def test_the_chunked_loss_leaves_no_gradient_on_its_head(tmp_path):
    taught = taught_model().train()
    args = arguments(tmp_path, loss_chunk_size=8)
    student = taught_model(16)
    made = DistillationTrainer(student, taught, args, train_dataset=TokenRows(), data_collator=TokenCollator(0))
    made.compute_loss(made.model.train(), made.data_collator([TokenRows()[0]])).backward()
    assert all(p.grad is None and p.requires_grad for p in taught.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_scanning_and_storing_leave_it_as_it_was(tmp_path):
    taught = Partly()
    before = seen(taught)
    scan(taught, Rows(), progress_bar=False)
    assert seen(taught) == before
    taught = taught_model().train()
    build_text_cache(taught, token_dataset(8), tmp_path, k=4, temperatures=1.0, progress_bar=False)
    assert all(module.training for module in taught.modules())
    assert all(p.requires_grad for p in taught.parameters())


def test_a_live_teacher_that_somebody_made_stays_frozen(tmp_path):
    live = FrozenTeacher(Partly())
    trainer(tmp_path, live).train()
    assert not any(module.training for module in live.modules())
    assert not any(p.requires_grad for p in live.parameters())


def test_a_network_that_does_more_than_to_set_modes_does_it_both_ways():
    class Merging(nn.Linear):
        """As loralib does: in eval mode the update is part of the weight."""

        def train(self, mode=True):
            if mode != self.training:
                with torch.no_grad():
                    self.weight += -1 if mode else 1
            return super().train(mode)

    network = Merging(2, 2)
    before, freezing = network.weight.clone(), Freezing([network])
    freezing.do()
    torch.testing.assert_close(network.weight, before + 1)
    freezing.undo()
    torch.testing.assert_close(network.weight, before)


# ---- a teacher that is not a network of its own ----------------------------------------------------------------------


def the_student(student):
    return student


def around_the_student(student):
    return nn.Sequential(nn.Identity(), student)


def with_its_body(student):
    taught = Net(seed=1)
    taught.conv = student.conv
    return taught


def with_its_memory(student):
    taught = Net(seed=1)
    taught.load_state_dict(student.state_dict(), assign=True)
    return taught


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (the_student, "(all of it|model)"),
        (around_the_student, "1"),
        (with_its_body, "conv"),
        (with_its_memory, "conv.weight"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda t: t, FrozenTeacher, lambda t: [teacher(), t]])
def test_one_that_would_change_with_the_student_is_refused(tmp_path, make, what, wrap):
    student = Net()
    taught = wrap(make(student))
    with pytest.raises(ValueError, match=rf"the teacher shares .*{what}.* with the student"):
        DistillationTrainer(student, taught, arguments(tmp_path / "run"), train_dataset=Rows())
    assert not list(tmp_path.iterdir())


def test_adapters_on_the_teacher_itself_are_refused_before_they_are_there(tmp_path):
    peft = pytest.importorskip("peft")
    network, config = Net(), peft.LoraConfig(target_modules=["head"])
    with pytest.raises(ValueError, match=r"the teacher shares all of it"):
        DistillationTrainer(network, network, arguments(tmp_path), train_dataset=Rows(), peft_config=config)
    assert type(network.head) is nn.Linear


def test_what_does_not_change_may_be_shared(tmp_path):
    """A frozen layer under another module, and an activation."""
    student, taught = Net(), teacher()
    wide = Net(16, seed=3)
    wide.conv.weight, wide.conv.bias = taught.conv.weight, taught.conv.bias
    wide.conv.requires_grad_(False)
    relu = nn.ReLU()
    pair = [nn.Sequential(nn.Flatten(), relu, nn.Linear(192, CLASSES)) for _ in range(2)]
    for one, other in ((wide, taught), pair):
        made = DistillationTrainer(one, other, arguments(tmp_path / type(one).__name__), train_dataset=Rows())
        made.train()
    assert torch.equal(wide.conv.weight, taught.conv.weight)
    assert not torch.equal(wide.head.weight, Net(16, seed=3).head.weight)
    assert student.conv.weight.requires_grad


def test_peers_that_are_one_network_are_refused():
    network = Net()
    with pytest.raises(ValueError, match="Peers has the same network more than once"):
        Peers([network, network])
