"""Objectives on logits: the distance of student and teacher for each item. `(Items, T [N]) -> [N]`."""

from hfkd.losses.base import Objective
from hfkd.losses.logits.adaptive_kl import AdaptiveKL
from hfkd.losses.logits.dist import DIST
from hfkd.losses.logits.divergences import JSD, KD, ReverseKL, SkewKL, SkewReverseKL, TotalVariation
from hfkd.losses.logits.dkd import DKD
from hfkd.losses.logits.gold import GOLD
from hfkd.losses.logits.mld import MLD
from hfkd.losses.logits.multi_teacher import Average, InverseEntropy
from hfkd.losses.logits.nkd import NKD
from hfkd.losses.logits.standardized import Standardized, standardized
from hfkd.losses.logits.uld import ULD
from hfkd.losses.registry import OBJECTIVES

__all__ = [
    "DIST",
    "DKD",
    "GOLD",
    "JSD",
    "KD",
    "MLD",
    "NKD",
    "OBJECTIVES",
    "ULD",
    "AdaptiveKL",
    "Average",
    "InverseEntropy",
    "Objective",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "Standardized",
    "TotalVariation",
    "standardized",
]
