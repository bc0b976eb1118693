"""The CIFAR networks of the distillation literature, which are registered with timm on import."""

from hfkd.models.cifar import mobilenetv2, resnet, resnet50, shufflenet, vgg, wrn
from hfkd.models.cifar.base import CifarNet

FAMILIES = (resnet, resnet50, wrn, vgg, mobilenetv2, shufflenet)
CIFAR_NETS = tuple(sorted(name for family in FAMILIES for name in family.default_cfgs))

__all__ = ["CIFAR_NETS", "CifarNet"]
