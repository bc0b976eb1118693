"""TAKD: distil through teacher assistants (Mirzadeh et al., AAAI 2020).

    accelerate launch recipes/takd.py --teacher_checkpoint resnet110.pth \\
        --chain cifar_resnet110 cifar_resnet56 cifar_resnet32 cifar_resnet20

Protocol: configs/cifar100.yaml with configs/takd.yaml, KD at every stage, whose flags hold for all. Each stage is a run
in a folder of its own, `1_cifar_resnet56` and so on; the last holds the student. The same command goes on where it was
stopped. The authors' release averages the KL divergence over the classes too, which makes it C times smaller here.
Published: Energy KD quotes it in its Tables 1 and 2, without the assistants. Ours: not run at full length.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.chain import distil_chain
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class ChainArguments:
    chain: list[str] = field(
        default_factory=lambda: ["cifar_resnet110", "cifar_resnet56", "cifar_resnet32", "cifar_resnet20"],
        metadata={"help": "The teacher, its assistants and the student, largest first: timm names, ids or folders."},
    )
    teacher_checkpoint: str | None = field(default=None, metadata={"help": "Weights of the first: .pth, .safetensors."})
    pages: bool = field(default=True, metadata={"help": "Leave a page of each stage, for another look at all images."})


def main() -> None:
    chain, data, args = parse(
        (ChainArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "takd.yaml"],
        description=__doc__,
    )
    distil_chain(chain.chain, chain.teacher_checkpoint, data, args, page=chain.pages)


if __name__ == "__main__":
    main()
