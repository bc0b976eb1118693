"""Students that are distilled from each other: deep mutual learning.

B images, C classes, K peers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hfkd.models.calling import Call


class Peers(nn.Module):
    """K classifiers that are trained together (DML, Zhang et al., CVPR 2018), each with the others as teachers.

    In training mode it returns the logits of all peers, [K B, C], peer by peer: the loss treats each peer as a view of
    the images. In evaluation mode it returns those of peer `scored` [B, C]. The paper updates the networks alternately,
    each on the other's updated logits; here all are updated at once, on the same logits.
    """

    def __init__(self, peers: Sequence[nn.Module], scored: int = 0) -> None:
        super().__init__()
        if len(peers) < 2:
            raise ValueError(
                f"Peers has {len(peers)} network, but mutual learning needs two or more: pass more networks"
            )
        if len({id(peer) for peer in peers}) < len(peers):
            raise ValueError("Peers has the same network more than once: pass different networks, such as copies")
        self.peers, self.scored = nn.ModuleList(peers), scored
        self._calls = [Call.of(peer) for peer in peers]

    def forward(self, pixel_values: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values}
        if not self.training:
            return self._calls[self.scored](self.peers[self.scored], inputs)
        logits = [call(peer, inputs) for call, peer in zip(self._calls, self.peers, strict=True)]
        if len({one.shape for one in logits}) > 1:
            raise ValueError(
                f"the peers have {[one.shape[-1] for one in logits]} classes: give all of them the same number"
            )
        return torch.cat(logits)


def networks_of(student: nn.Module) -> tuple[nn.Module, ...]:
    """The networks that are trained: those of `Peers`, or the student itself."""
    return tuple(student.peers) if isinstance(student, Peers) else (student,)


def taught_by_the_others(logits: Tensor, peers: int) -> Tensor:
    """The other peers' logits for each peer, detached: [K B, C] -> [K B, C] for two peers, [K - 1, K B, C] for more."""
    rows = len(logits) // peers
    others = [logits.detach().roll(-shift * rows, 0) for shift in range(1, peers)]
    return others[0] if peers == 2 else torch.stack(others)
