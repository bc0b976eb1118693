"""CAT-KD: class activation maps.

B images, C classes, D channels, H and W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.classifier import linear_classifier
from hfkd.losses.features.maps import in_float32, mean_squares, unit
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, checked
from hfkd.utils.feature_keys import Layer


@register_objective("catkd")
@checked
class CATKD(LayerPairs):
    """Class attention transfer (Guo et al., CVPR 2023).

        l_s = mean over classes and cells of  (phi(CAM_s) - phi(CAM_t))^2

    CAM_c = sum_d w_cd F_d is the activation map of class c, computed from the last map and the classifier's weight. phi
    is average pooling to `size` x `size`; with `normalized`, each class's map is then scaled to length 1. A value
    depends on its own sample only. The student's classifier weight receives a gradient too; no other parameters are
    trained besides the student's. The authors turn the classifier into a 1x1 convolution without a bias; here the
    networks are not changed, and the biases do not enter the activation maps.

    `layer` is the map that is pooled for the classifier, by default the input of timm's `global_pool`. Published
    weights beside the cross-entropy, size and normalized: ResNet32x4 -> ResNet8x4 15, 2; ResNet110 -> ResNet32 1.8, 2;
    ResNet56 -> ResNet20 .7, 2; VGG13 -> VGG8 4.5, 2; WRN-40-2 -> WRN-16-2 12, 2, WRN-40-1 1.5, 2; ResNet32x4 ->
    ShuffleNetV1, V2 600, 4, True; WRN-40-2 -> ShuffleNetV1 80, 4, True; ResNet50 -> MobileNetV2 40, 2, True; VGG13 ->
    MobileNetV2 15, 2, True.
    """

    single = True
    maps = True

    def __init__(
        self,
        layer: Layer = "global_pool:in",
        teacher_layer: Layer | None = None,
        size: Count = 2,
        normalized: bool = False,
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.size, self.normalized = layer, teacher_layer, size, normalized

    def build(self, context: BuildContext) -> None:
        super().build(context)
        ((mine, theirs),) = self.pairs or ()
        classifiers = []
        for name, network, key in (("student", context.student, mine), ("teacher", context.teacher, theirs)):
            classifiers.append(linear_classifier("catkd", name, network))
            if classifiers[-1].in_features != network.shape(key)[0]:
                raise ValueError(
                    f"{self!r}: layer {key!r} of the {name} has {network.shape(key)[0]} channels, but its classifier "
                    f"reads {classifiers[-1].in_features}: name the layer that is pooled for the classifier"
                )
        order = context.teacher.class_order
        self.teacher_classes = slice(None) if order is None else list(order)
        # In a tuple, so that they are not submodules: their parameters would be trained and saved twice.
        self.classifiers = tuple(classifiers)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        mine, theirs = (classifier.weight for classifier in self.classifiers)
        return catkd(
            activation_maps(student, mine),
            activation_maps(teacher, theirs.detach()[self.teacher_classes]),
            self.size,
            self.normalized,
        )


@in_float32
def activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps: the last map [B, D, H, W] and the linear classifier's weight [C, D] -> [B, C, H, W].

    Their spatial mean is the logits, but for the classifier's bias.
    """
    return torch.einsum("bdhw,cd->bchw", features, weight.to(features.dtype))


@in_float32
def catkd(student: Tensor, teacher: Tensor, size: int = 2, normalized: bool = False) -> Tensor:
    """The mean squared difference of each image's activation maps [B], both [B, C, H, W] pooled to `size` x `size`."""
    s, t = (F.adaptive_avg_pool2d(x, size).flatten(2) for x in (student, teacher))  # [B, C, size * size]
    if normalized:
        s, t = unit(s), unit(t)
    return mean_squares(s, t)
