"""What `restore` undoes, and what it lets be."""

import torch
from torch import nn

from hfkd.utils.buffers import KeptBuffers


def test_buffers_come_back_and_a_new_one_stays():
    network, kept = nn.BatchNorm1d(2), KeptBuffers()
    kept.keep(network)
    network(torch.full((4, 2), float("inf")))
    kept.restore(network)
    assert network.running_mean.tolist() == [0, 0]
    assert network.num_batches_tracked == 0
    network(torch.ones(4, 2))
    network.register_buffer("table", torch.zeros(3))
    kept.keep(network)
    network.table, network.late = torch.ones(3), nn.Buffer(torch.ones(1))
    kept.restore(network)
    assert network.table.tolist() == [0, 0, 0]
    assert network.late.tolist() == [1]
    torch.testing.assert_close(network.running_mean, torch.full((2,), 0.1))


def test_a_network_without_buffers_is_fine():
    network, kept = nn.Linear(2, 2), KeptBuffers()
    kept.keep(network)
    kept.keep(network)
    kept.restore(network)
