"""TAKD: distil through teacher assistants (Mirzadeh et al., AAAI 2020).

    accelerate launch recipes/takd.py --teacher_checkpoint resnet110.pth \\
        --chain cifar_resnet110 cifar_resnet56 cifar_resnet32 cifar_resnet20

Protocol: configs/cifar100.yaml with configs/takd.yaml, with KD at every stage; flags apply to all stages. Each stage is
a run in its own folder, `1_cifar_resnet56` and so on; the last one has the student. The same command resumes an
interrupted chain. The authors' release averages the KL divergence over the classes too, so that it is C times smaller.
Published: Energy KD quotes it in its Tables 1 and 2, without the assistants. Ours: not run at full length.
"""

from dataclasses import dataclass
from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.chain import distil_chain
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class ChainArguments:
    chain: list[str] = flag(
        lambda: ["cifar_resnet110", "cifar_resnet56", "cifar_resnet32", "cifar_resnet20"],
        "The teacher, its assistants and the student, largest first: timm names, ids or folders.",
    )
    teacher_checkpoint: str | None = flag(None, "Weights of the first network: .pth, .safetensors.")
    pages: bool = flag(True, "Write a page for each stage, which needs another pass over all images.")


def main() -> None:
    chain, data, args = parse(
        (ChainArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "takd.yaml"],
        description=__doc__,
    )
    distil_chain(chain.chain, chain.teacher_checkpoint, data, args, page=chain.pages)


if __name__ == "__main__":
    main()
