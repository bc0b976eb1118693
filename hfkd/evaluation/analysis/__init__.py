"""Analysis of trained image classifiers: one forward pass of each, and the numbers of the papers' figures."""

from hfkd.evaluation.analysis.network import AnalysedNetwork, NetworkPass, network_pass
from hfkd.evaluation.analysis.samples import SampleNumbers, compare, correlation_difference, sample_numbers, segments

__all__ = [
    "AnalysedNetwork",
    "NetworkPass",
    "SampleNumbers",
    "compare",
    "correlation_difference",
    "network_pass",
    "sample_numbers",
    "segments",
]
