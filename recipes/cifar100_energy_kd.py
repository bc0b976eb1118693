"""Distil a CIFAR-100 teacher into a smaller network with Energy KD (Kim et al., Knowledge-Based Systems 296, 2024).

    accelerate launch recipes/cifar100_energy_kd.py --teacher_checkpoint wrn_40_2.pth

Protocol: configs/cifar100.yaml, at the paper's 360 epochs. The temperatures follow the paper; its released code swaps
them (`--temperature "energy(direction='released')"`). An interrupted run is resumed by the same command. Pairs of
networks are in configs/pairs, other methods in configs; later files take precedence over earlier ones, and flags over
all files (`--config recipes/configs/pairs/resnet56_resnet20.yaml recipes/configs/kd.yaml --seed 1`), see --help.
"""

from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.distil import distil_images
from hfkd.models import NetworkArguments
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    networks, data, args = parse(
        (NetworkArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "cifar100_energy_kd.yaml"],
        description=__doc__,
    )
    distil_images(networks, data, args)


if __name__ == "__main__":
    main()
