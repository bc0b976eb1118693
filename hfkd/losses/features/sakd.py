"""SAKD: an agent that reads both networks' features chooses the layers at which each image is distilled.

B images, C classes, K spots, besides the logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.base import FeatureObjective
from hfkd.losses.features.maps import through
from hfkd.losses.features.negatives import hashed
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.features.regressor import Regressor
from hfkd.losses.features.running_stages import RunningStages
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items
from hfkd.losses.logits.divergences import KD
from hfkd.losses.registry import OBJECTIVES, register_objective
from hfkd.utils.argument_types import NotNegative, Positive, checked
from hfkd.utils.devices import widest_float
from hfkd.utils.feature_keys import Layer, feature_key
from hfkd.utils.slots import resolve

TAU = 5.0  # temperature of the gates' softmax; constant, as in the released code
TINY = 1e-20


@register_objective("sakd")
@checked
class SAKD(FeatureObjective):
    """Spot-adaptive knowledge distillation (Song et al., IEEE TIP 2022) around `objective`, which has K layers.

        l_i = alpha a_i,K+1 T² KL(p_t || p_s) + beta sum_k a_ik l_ik

    l_ik is the value of `objective` (at, nst, vid, fitnet) at layer k. The gates a are 0 or 1: 1 where the first of the
    pair softmax((policy(pooled t, pooled s) + Gumbel noise) / 5) is the larger; they have no gradient in this loss. An
    image that is left out at a spot counts as 0 there. A value depends on its own sample only if that of `objective`
    does.

    The agent (policy and adapters) is trained by its own loss, f CE(grafted) + max(0, B/2 - sum_i a_i,K+1), without a
    weight. After each spot, the grafted network continues with the teacher's features where a_ik = 1 and the student's
    where it is 0, each passed to the other network through an adapter (`Regressor`). f = gamma where the grafted
    network's cross-entropy is above the student's, else 1 / gamma. The student is in evaluation mode there and gets no
    gradient. The gates' gradient is straight-through. The agent's learning rate is `agent_learning_rate` (half of 0.05,
    as released), and it has its own weight decay.

    `teacher_first` adds 10 to the policy's biases towards the teacher (as released for pairs of one family).
    `image_layer` is the first layer of both networks, whose input is the image. The noise is a function of (seed, step,
    image), or of the image's position in the batch where rows have no index. The paper's KD term is included: use no
    "kd" beside it, and kd_weight 1. Published: alpha 1; beta 1000 and gamma 2 for AT, 1 and 1 for FitNet, 1 and 2 for
    VID, 50 and 1 for NST.
    """

    softens = True

    def __init__(
        self,
        objective: Any = "at",
        alpha: NotNegative = 1.0,
        beta: NotNegative = 1000.0,
        gamma: Positive = 2.0,
        teacher_first: bool = False,
        agent_learning_rate: Positive = 0.025,
        agent_weight_decay: NotNegative = 1e-3,
        image_layer: Layer = "conv1:in",
        teacher_image_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.alpha, self.beta, self.gamma = objective, alpha, beta, gamma
        self.teacher_first, self.image_layer, self.teacher_image_layer = teacher_first, image_layer, teacher_image_layer
        self.agent_learning_rate, self.agent_weight_decay = agent_learning_rate, agent_weight_decay
        inner = resolve(objective, OBJECTIVES, "objective")
        if not (isinstance(inner, LayerPairs) and hasattr(inner, "of_layers")):
            raise ValueError(
                f"SAKD: objective={objective!r} does not give a value per sample and layer: use at, nst, vid or fitnet"
            )
        self.inner: Any = inner
        self.divergence = inner.divergence
        its = image_layer if teacher_image_layer is None else teacher_image_layer
        self.images = feature_key(image_layer), feature_key(its)

    def requirements(self) -> Requirements:
        mine, theirs = self.images
        own = Requirements((mine, "pooled"), (theirs, "pooled"), fixed=(mine,), labels=True)
        return Requirements.joined([self.inner.requirements(), own])

    def build(self, context: BuildContext) -> None:
        self.inner.build(context)
        pairs = self.inner.pairs
        if not all(key.isdigit() for pair in pairs for key in pair):
            raise ValueError(f"{self!r}: the layers are {pairs}, but spots must be stages: name stages, such as '1:'")
        self.spots = [(int(mine), int(theirs)) for mine, theirs in pairs]
        shapes = [(context.student.shape(mine), context.teacher.shape(theirs)) for mine, theirs in pairs]
        self.hints = nn.ModuleList(Regressor(s, t) for s, t in shapes)
        self.anti_hints = nn.ModuleList(Regressor(t, s) for s, t in shapes)
        widths = [network.shape("pooled")[0] for network in (context.teacher, context.student)]
        self.policy = nn.Linear(sum(widths), 2 * len(self.spots) + 2)
        if self.teacher_first:
            with torch.no_grad():
                self.policy.bias[::2] += 10
        # In a tuple, so that the networks are not submodules.
        networks = (("student", context.student), ("teacher", context.teacher))
        self.networks = tuple(RunningStages("sakd", name, network) for name, network in networks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        agent = [p for part in (self.policy, self.hints, self.anti_hints) for p in part.parameters()]
        return [{"params": agent, "lr": self.agent_learning_rate, "weight_decay": self.agent_weight_decay}]

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        gates = self.gates(items).detach()
        layers = torch.stack(self.inner.of_layers(items), 1)  # [B, K]
        return self.alpha * gates[:, -1] * KD()(items, temperature) + self.beta * (gates[:, :-1] * layers).sum(1)

    def gates(self, items: Items) -> Tensor:
        """a [B, K + 1], 0 or 1, with the gradient of the softmax."""
        features = [outputs.features["pooled"].detach().flatten(1) for outputs in (items.teacher, items.student)]
        # Without autocast: numbers near 1 would be rounded to 1, whose noise is infinite in float16, and the gates of
        # this loss would differ from those that train the agent.
        with torch.autocast(items.sample.device.type, enabled=False):
            scores = through(self.policy, torch.cat([upcast(x) for x in features], 1)).unflatten(1, (-1, 2))
        noise = -torch.log(-torch.log(self.uniform(items).to(scores) + TINY) + TINY)
        soft = torch.softmax((scores + noise) / TAU, -1)[..., 0]
        return (soft >= 0.5).to(soft) + (soft - soft.detach())

    def uniform(self, items: Items) -> Tensor:
        """Numbers in [0, 1) for the gates, [B, K + 1, 2]."""
        index = torch.arange(len(items), device=items.sample.device) if items.index is None else items.index
        count = 2 * len(self.spots) + 2
        found = hashed(items.seed, items.step, index, count) >> 9  # [0, 2^53)
        return (found.to(widest_float(found.device)) / 2**53).unflatten(1, (-1, 2))

    def own_loss(self, items: Items, temperature: Tensor) -> Tensor:
        assert items.labels is not None
        gates = self.gates(items)
        grafted = F.cross_entropy(upcast(self.grafted(items, gates)), items.labels)
        students = F.cross_entropy(upcast(items.student.logits.detach()), items.labels)
        factor = torch.where(grafted.detach() > students, self.gamma, 1 / self.gamma)
        return factor * grafted + (len(items) / 2 - gates[:, -1].sum()).clamp(min=0)

    def grafted(self, items: Items, gates: Tensor) -> Tensor:
        """The logits [B, C] of the grafted network."""
        (student, teacher), (mine, theirs) = self.networks, self.images
        s, t = items.student.features[mine].detach(), items.teacher.features[theirs]
        at = (-1, -1)
        with evaluated(student.network, but=self):
            for k, spot in enumerate(self.spots):
                s, t = student.onwards(at[0], s, spot[0])[-1], teacher.onwards(at[1], t, spot[1])[-1]
                gate = gates[:, k].view(-1, 1, 1, 1)
                s, t = (
                    (1 - gate) * s + gate * through(self.anti_hints[k], t),
                    (1 - gate) * through(self.hints[k], s) + gate * t,
                )
                at = spot
            last = gates[:, -1:]
            return (1 - last) * student.to_the_end(at[0], s) + last * teacher.to_the_end(at[1], t)


@contextmanager
def evaluated(network: nn.Module, but: nn.Module) -> Iterator[None]:
    """Within the context the network is in evaluation mode, and its parameters get no gradient.

    but: a submodule that is left unchanged, since the trainer makes the loss a child of the student.
    """
    apart, own = set(but.modules()), set(but.parameters())
    modes = {module: module.training for module in network.modules() if module not in apart}
    trained = [p for p in network.parameters() if p.requires_grad and p not in own]
    for module in modes:
        module.training = False
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p in trained:
            p.requires_grad_(True)
