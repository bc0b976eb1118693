"""Students that teach each other: deep mutual learning.

B images, C classes, K peers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hfkd.models.calling import Call


class Peers(nn.Module):
    """K classifiers trained side by side (DML, Zhang et al., CVPR 2018), each the others' teacher.

    In training the logits of all peers, [K B, C], peer by peer: to the loss a peer is a view of the images. In
    evaluation those of peer `scored` [B, C]. The paper updates the networks in turn, each on the other's fresh logits;
    here all take their step at once, on the same ones.
    """

    def __init__(self, peers: Sequence[nn.Module], scored: int = 0) -> None:
        super().__init__()
        if len(peers) < 2:
            raise ValueError(f"Peers of {len(peers)} network: mutual learning needs two or more")
        if len({id(peer) for peer in peers}) < len(peers):
            raise ValueError("Peers that are one network have nothing to learn from each other: give each its own")
        self.peers, self.scored = nn.ModuleList(peers), scored
        self._calls = [Call.of(peer) for peer in peers]

    def forward(self, pixel_values: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values}
        if not self.training:
            return self._calls[self.scored](self.peers[self.scored], inputs)
        logits = [call(peer, inputs) for call, peer in zip(self._calls, self.peers, strict=True)]
        if len({one.shape for one in logits}) > 1:
            raise ValueError(f"peers of {[one.shape[-1] for one in logits]} classes: they must have the same ones")
        return torch.cat(logits)


def networks_of(student: nn.Module) -> tuple[nn.Module, ...]:
    """The networks that are trained: those of `Peers`, or the student itself."""
    return tuple(student.peers) if isinstance(student, Peers) else (student,)


def taught_by_the_others(logits: Tensor, peers: int) -> Tensor:
    """What the others say to each peer, without gradient: [K B, C] -> [K B, C] for two, [K - 1, K B, C] for more."""
    rows = len(logits) // peers
    others = [logits.detach().roll(-shift * rows, 0) for shift in range(1, peers)]
    return others[0] if peers == 2 else torch.stack(others)
