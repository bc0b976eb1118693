"""Deep mutual learning: train several networks together that teach each other (Zhang et al., CVPR 2018).

    accelerate launch recipes/dml.py --peer_names cifar_resnet32 cifar_resnet32

Protocol: configs/cifar100.yaml with configs/dml.yaml. Each peer is saved in its own folder, `peer_0` and so on, with
its accuracy; the page and results.json are those of the first. All peers are updated at the same time (in the paper one
after the other).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.classifier_run import run_classifier
from hfkd.experiments.distil import image_trainer
from hfkd.experiments.peers import save_peers
from hfkd.models import Peers, image_classifier
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class PeerArguments:
    peer_names: list[str] = flag(
        lambda: ["cifar_resnet32", "cifar_resnet32"], "The networks, two or more: timm names, Hub ids or folders."
    )


def main() -> None:
    networks, data, args = parse(
        (PeerArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "dml.yaml"],
        description=__doc__,
    )

    def build(classes, names):
        return Peers([image_classifier(name, classes, label_names=names) for name in networks.peer_names]), None

    trainer = image_trainer(build, data, args)
    run_classifier(trainer, vars(networks) | vars(data) | trainer.settings, trained=partial(save_peers, trainer))


if __name__ == "__main__":
    main()
