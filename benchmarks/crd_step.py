"""CRD's loss compared with a direct implementation: time, and peak memory of tensors.

    OMP_NUM_THREADS=1 python benchmarks/crd_step.py

Forward and backward of the loss on features of both networks, and the memories' update; no networks. The direct
implementation gathers the rows of K other images and of the image itself from the memories, [B, K + 1, D] for each
network, and multiplies them with the image's embedding, as public code does; it samples the K images at once with
torch.randint, whereas public code samples them on the host for each image. hfkd multiplies with the whole memory and
gathers the entries of those images. Both compute the same values, which is checked first. They run alternately; the
fastest step of each counts.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from operations import Bytes
from torch import Tensor
from turns import now, ratio, table, take_turns, write

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.features import CRD
from hfkd.losses.features.crd import contrast
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(flags: argparse.Namespace) -> tuple[CRD, Items]:
    torch.manual_seed(0)
    features = [torch.randn(flags.batch_size, width, device=DEVICE) for width in (flags.width, 2 * flags.width)]
    features[0].requires_grad_()
    logits = torch.zeros(flags.batch_size, 2, device=DEVICE)
    rows = torch.randperm(flags.rows)[: flags.batch_size].to(DEVICE)
    student, teacher = (Outputs(logits, {"pooled": x}) for x in features)
    contexts = [NetworkContext({"pooled": (x.shape[1],)}, {}, None, {}) for x in features]
    objective = CRD(negatives=flags.negatives, sampling="other_images")
    objective.build(BuildContext(*contexts, 2, flags.rows, None, None, seed=0))
    items = Items(student, teacher, None, torch.arange(flags.batch_size), flags.batch_size, index=rows, own_sample=True)
    return objective.to(DEVICE), items


def ours(objective: CRD, items: Items, step: int) -> Tensor:
    return objective(replace(items, step=step), torch.ones(len(items)))


def direct(objective: CRD, items: Items, step: int, others: Tensor | None = None) -> Tensor:
    """The same loss from gathered rows of the memories; `others`: the other images, sampled if not given."""
    bank, index = objective.bank, items.index
    bank.arrive(0, index.device)
    if others is None:
        others = torch.randint(len(bank.student), (len(index), objective.negatives), device=index.device)
    rows = torch.cat([index.unsqueeze(1), others], 1)
    v_s = objective.embed_student(items.student.features["pooled"])
    v_t = objective.embed_teacher(items.teacher.features["pooled"])
    losses = []
    for v, memory, name in ((v_s, bank.teacher, "student"), (v_t, bank.student, "teacher")):
        taken = memory.index_select(0, rows.view(-1)).view(*rows.shape, -1)  # [B, K + 1, D]
        scores = (torch.bmm(taken, v.unsqueeze(2)).squeeze(2) / objective.temperature).exp()
        losses.append(contrast(scores / bank.normalizer(name, scores), objective.negatives / len(memory)))
    with torch.no_grad():
        for memory, v in ((bank.student, v_s), (bank.teacher, v_t)):
            moved = bank.momentum * memory[index] + (1 - bank.momentum) * v
            memory[index] = moved / moved.norm(dim=-1, keepdim=True)
    return losses[0] + losses[1]


def seconds(flags: argparse.Namespace, loss: Callable[..., Tensor]) -> list[float]:
    objective, items = inputs(flags)
    found = []
    for step in range(flags.steps):
        start = now()
        loss(objective, items, step).mean().backward()
        found.append(now() - start)
    return [min(found[1:])]


def held(flags: argparse.Namespace, loss: Callable[..., Tensor]) -> int:
    """Bytes above those of the memories, the embeddings and the features."""
    objective, items = inputs(flags)
    loss(objective, items, 0).mean().backward()
    with Bytes() as counted:
        loss(objective, items, 1).mean().backward()
    return counted.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="training images: those of CIFAR-100")
    parser.add_argument("--negatives", type=int, default=16_384)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=128, help="of the student's pooled features; the teacher's: twice")
    parser.add_argument("--steps", type=int, default=4, help="of a turn; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="few images, few negatives, one round")
    flags = parser.parse_args()
    if flags.quick:
        flags.rows, flags.negatives, flags.batch_size, flags.steps, flags.rounds = 1000, 64, 8, 3, 1
    objective, items = inputs(flags)
    with torch.no_grad():
        others = objective.sampler(items.seed, 0, items.index, flags.negatives)
        torch.testing.assert_close(
            ours(objective.eval(), items, 0), direct(*inputs(flags), 0, others), rtol=1e-4, atol=1e-4
        )
    ways = {"direct": direct, "hfkd": ours}
    memory = {name: held(flags, way) for name, way in ways.items()}
    times = take_turns({name: partial(seconds, flags, way) for name, way in ways.items()}, flags.rounds)
    lines = [
        [name, f"{1e3 * min(times[name]):.0f}", f"{ratio(times, name, 'direct'):.2f}", f"{memory[name] / 1e6:.0f}"]
        for name in ways
    ]
    print(table(["loss", "ms", "direct = 1", "bytes at once, MB"], lines))
    write(flags.json, seconds=times, memory=memory, flags=vars(flags))


if __name__ == "__main__":
    main()
