"""Target tokens found on the host are those of the labels, also where a batch was cut in parts on its way."""

import torch

from hfkd.utils.targets import IGNORED, HostTargets, Targets

LABELS = torch.tensor([[IGNORED, 4, 5, IGNORED], [7, 8, IGNORED, 9], [IGNORED] * 4])


def test_what_the_host_found_is_what_the_labels_say():
    known, found = Targets(LABELS, HostTargets.of(LABELS)), Targets(LABELS)
    assert known.position.tolist() == found.position.tolist() == [0, 1, 4, 6]
    assert known.labels.tolist() == [4, 5, 8, 9]
    assert known.sample.tolist() == [0, 0, 1, 1]
    assert known.lengths == found.lengths == (2, 2, 0)


def test_those_of_a_whole_batch_are_not_taken_for_a_parts():
    part = Targets(LABELS[1:], HostTargets.of(LABELS))
    assert part.labels.tolist() == [8, 9]
    assert part.lengths == (2, 0)
