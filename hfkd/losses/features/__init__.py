"""Objectives on inner features: the distance of student and teacher for each sample. `(Items, T [N]) -> [S]`."""

from hfkd.losses.features.at import AT
from hfkd.losses.features.attention_scores import AttentionScores
from hfkd.losses.features.catkd import CATKD
from hfkd.losses.features.crd import CRD
from hfkd.losses.features.cwd import CWD
from hfkd.losses.features.fcfd import FCFD
from hfkd.losses.features.fitnet import FitNet
from hfkd.losses.features.hidden_cosine import HiddenCosine
from hfkd.losses.features.hidden_mse import HiddenMSE
from hfkd.losses.features.lsh import LSH
from hfkd.losses.features.minilm import MiniLM
from hfkd.losses.features.nst import NST
from hfkd.losses.features.ofd import OFD
from hfkd.losses.features.pkd import PKD
from hfkd.losses.features.pkt import PKT
from hfkd.losses.features.reviewkd import ReviewKD
from hfkd.losses.features.rkd import RKD
from hfkd.losses.features.sakd import SAKD
from hfkd.losses.features.sp import SP
from hfkd.losses.features.vid import VID

__all__ = [
    "AT",
    "CATKD",
    "CRD",
    "CWD",
    "FCFD",
    "LSH",
    "NST",
    "OFD",
    "PKD",
    "PKT",
    "RKD",
    "SAKD",
    "SP",
    "VID",
    "AttentionScores",
    "FitNet",
    "HiddenCosine",
    "HiddenMSE",
    "MiniLM",
    "ReviewKD",
]
