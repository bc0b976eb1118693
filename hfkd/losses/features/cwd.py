"""CWD: each channel of a map as a distribution over its pixels.

B images, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn

from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import in_float32
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.functional import interpolated
from hfkd.losses.items import Items
from hfkd.losses.logits.divergences import kl
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import SoftmaxTemperature, checked
from hfkd.utils.feature_keys import Layer


@register_objective("cwd")
@checked
class CWD(LayerPairs):
    """Channel-wise distillation (Shu et al., ICCV 2021), widely used for semantic segmentation.

        l_s = T^2 / C sum_c KL(p_c || q_c),    p_c = softmax over H W of t_c / T

    q is the student's, and C the number of channels. By default the logits are compared, at the student's resolution:
    the teacher's map is resized to it (bilinear). `temperature` is that of the softmax over space: 4 in the authors'
    code, with a weight of 3 beside the cross-entropy; 1 in mmrazor, with a weight of 5 (Cityscapes) or 10 (ADE20K);
    None: the loss's temperature, averaged over the image's items. All pixels count, labelled or not. A value depends on
    its own sample only. It is computed in log space, so that it is finite even where a probability of the student
    underflows, unlike in the authors' code.

    On any other layer, features are compared. If their widths differ, the student's pass through a 1x1 convolution,
    batch norm and ReLU, which are trained with the student. Raises ValueError when built for features that are not
    maps.
    """

    single = True
    maps = True

    def __init__(
        self, layer: Layer = "logits", teacher_layer: Layer | None = None, temperature: SoftmaxTemperature | None = 4.0
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.temperature = layer, teacher_layer, temperature
        self.softens = temperature is None
        self.connector: nn.Module = nn.Identity()

    def build(self, context: BuildContext) -> None:
        super().build(context)
        ((mine, its),) = self.pairs or ()
        channels, wanted = context.student.shape(mine)[0], context.teacher.shape(its)[0]
        if channels != wanted:
            self.connector = nn.Sequential(
                nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(inplace=True)
            )

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        if self.temperature is None:
            of_samples = items.sample_means(temperature)
            of_samples = of_samples.where(of_samples > 0, 1.0)  # an image without labelled pixels is not counted
        else:
            of_samples = torch.full((len(student),), float(self.temperature), device=student.device)
        return channelwise(self.connector(student), teacher, of_samples)


@in_float32
def channelwise(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """T^2 / C sum_c KL of the softmax over space [B]; the teacher's map at the student's size. Maps [B, C, H, W]."""
    teacher, t = interpolated(teacher, student.shape[-2:]), temperature.view(-1, 1, 1)
    log_p, log_q = (torch.log_softmax(x.flatten(2) / t, -1) for x in (teacher, student))  # [B, C, H W]
    return temperature**2 * kl(log_p.flatten(0, 1), log_q.flatten(0, 1)).view(log_p.shape[:2]).mean(1)
