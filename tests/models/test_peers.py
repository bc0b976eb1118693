"""Deep mutual learning against ten lines of PyTorch, and what Peers are to the trainer."""

import pytest
import torch
import torch.nn.functional as F
from objectives_by_level import ON_LOGITS
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.logits.wrapping import Wrapping
from hfkd.models import Peers
from hfkd.models.peers import taught_by_the_others


class Images(nn.Module):
    """A toy classifier that names its input, as Hugging Face's do."""

    def __init__(self, width, seed):
        super().__init__()
        self.net = Net(width, seed=seed)

    def forward(self, pixel_values):
        return self.net(pixel_values)


def make(folder, peers, **keywords):
    slots = {"temperature": 1.0, "ce_weight": 1.0, "kd_weight": 1.0, "objective": "average"}
    settings = arguments(folder, **keywords)
    return DistillationTrainer(Peers(peers), None, settings, train_dataset=Rows(), eval_dataset=Rows(9), **slots)


@pytest.mark.parametrize("count", [2, 3])
def test_one_step_is_the_plain_pytorch_step(tmp_path, count):
    """L_k = CE_k + 1 / (K - 1) sum over the others of KL(p_other || p_k), T = 1, for each peer."""
    trainer = make(tmp_path, [Images(4 + k, k) for k in range(count)], max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    naive, rows, total = [Images(4 + k, k) for k in range(count)], Rows(), 0
    logits = [net(rows.images) for net in naive]
    for k, mine in enumerate(logits):
        total = total + F.cross_entropy(mine, rows.labels)
        for j, other in enumerate(logits):
            if j != k:
                p = other.detach().softmax(-1)
                total = total + (p * (p.log() - mine.log_softmax(-1))).sum(-1).mean() / (count - 1)
    total.backward()
    for mine, theirs in zip(nn.ModuleList(naive).parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine - 0.1 * mine.grad, rtol=0, atol=1e-6)


def test_in_evaluation_one_peer_answers(tmp_path):
    peers = [Images(4, 0), Images(6, 1)]
    trainer = make(tmp_path, peers)
    rows = Rows(9)
    for scored in (0, 1):
        trainer.model.scored = scored
        expected = F.cross_entropy(peers[scored](rows.images), rows.labels).item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_the_others_are_everyone_but_oneself():
    logits = torch.arange(3.0).repeat_interleave(2)[:, None]  # three peers, two images
    others = taught_by_the_others(logits, 3)
    assert others.shape == (2, 6, 1)
    for k in range(3):
        assert {*others[:, 2 * k].flatten().tolist()} == {0.0, 1.0, 2.0} - {float(k)}


def test_what_peers_cannot_do_is_refused(tmp_path):
    peers = [Images(4, 0), Images(6, 1)]
    with pytest.raises(ValueError, match="two or more"):
        Peers(peers[:1])
    with pytest.raises(ValueError, match="leave the teacher out"):
        DistillationTrainer(Peers(peers), teacher(), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(ValueError, match="needs a scan by a fixed teacher"):
        DistillationTrainer(Peers(peers), None, arguments(tmp_path), train_dataset=Rows(), temperature="energy")
    for keywords in ({"he_da": "paper"}, {"teacher_cache_dir": "logits"}, {"evaluate_kl": True}):
        with pytest.raises(ValueError, match="needs a fixed teacher, and Peers have none"):
            make(tmp_path, peers, **keywords)


def test_gpus_whose_logits_are_joined_one_after_the_other_are_refused(tmp_path):
    """As DataParallel does: half of the rows would have each other's labels."""
    both, images = Peers([Images(4, 0), Images(6, 1)]), Rows(8).images
    assert not torch.allclose(torch.cat([both(images[:4]), both(images[4:])]), both(images))
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="joins the logits of its 2 GPUs .* launch one process per GPU"):
        DistillationTrainer(both, None, args, train_dataset=Rows(), objective="average")


@pytest.mark.parametrize("objective", [n for n in ON_LOGITS if not issubclass(OBJECTIVES[n], Wrapping)])
@pytest.mark.parametrize("around", ["{}", "standardized(objective='{}')", "average(objective='{}')"])
def test_no_peer_is_privileged_by_an_objective_that_is_not_refused(tmp_path, objective, around):
    peers, spec = [Images(4, 0), Images(6, 1)], around.format(objective)
    loss = DistillationLoss(spec, ce_weight=0.0)
    logits, labels = torch.stack([net(Rows(9).images) for net in peers]).detach(), Rows(9).labels
    one, other = (
        loss(image_items(x, taught_by_the_others(x, 2), labels))[0]
        for x in (logits.flatten(0, 1), logits.flip(0).flatten(0, 1))
    )
    if objective != "mld":
        torch.testing.assert_close(one, other)
        return
    assert abs(one - other) > 1e-4
    with pytest.raises(ValueError, match="treats the first view of an image separately"):
        DistillationTrainer(Peers(peers), None, arguments(tmp_path), train_dataset=Rows(), objective=spec)
