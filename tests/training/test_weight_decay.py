"""What weight decay applies to."""

import pytest
import torch
from torch import nn
from toys import Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.models import image_classifier


class Normed(nn.Module):
    """A classifier with norms of all kinds, under names that do not say so."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.gn, self.down = (
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.Sequential(nn.InstanceNorm2d(4, affine=True)),
        )
        self.scale, self.head = nn.RMSNorm(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.down(self.gn(self.bn1(self.conv(x))))
        return self.head(self.scale(torch.relu(x).mean((2, 3))))


@pytest.mark.parametrize("make", [Normed, lambda: image_classifier("cifar_resnet8", 5)], ids=["norms", "resnet8"])
@pytest.mark.parametrize("everything", [True, False])
def test_norms_and_biases_are_decayed_together_or_not_at_all(tmp_path, make, everything):
    args = arguments(tmp_path, weight_decay=0.1, decay_bias_and_norm=everything)
    trainer = DistillationTrainer(make(), teacher(), args, train_dataset=Rows())
    decayed = {
        id(p) for group in trainer.create_optimizer().param_groups if group["weight_decay"] for p in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        assert (id(parameter) in decayed) == (everything or parameter.ndim > 1), name
