"""Train a teacher on the labels alone, with the same data and protocol as the students, or evaluate one.

    accelerate launch recipes/train_teacher.py --network_name cifar_wrn_40_2
    accelerate launch recipes/train_teacher.py --network_name cifar_wrn_16_2 --checkpoint wrn_16_2.pth --evaluate_only

Protocol: configs/cifar100.yaml. Its output folder can be used as `--teacher_name` of the other recipes.
"""

from dataclasses import dataclass
from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.classifier_run import run_classifier
from hfkd.experiments.distil import image_trainer, network_to_evaluate
from hfkd.models import image_classifier
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class NetworkArguments:
    network_name: str = flag("cifar_wrn_40_2", "A timm name, a Hub id or a saved folder.")
    checkpoint: str | None = flag(None, "Weights to start from: .pth, .safetensors.")
    new_head: bool = flag(False, "Replace the last layer of a stored network by a new one for these classes.")
    evaluate_only: bool = flag(False, "Evaluate the network without training.")

    def __post_init__(self) -> None:
        if self.evaluate_only and self.new_head:
            raise ValueError(
                "evaluate_only=True with new_head=True would evaluate random weights: leave one of them out"
            )


def main() -> None:
    network, data, args = parse(
        (NetworkArguments, ImageDataArguments, DistillationArguments),
        defaults=[CONFIGS / "cifar100.yaml", CONFIGS / "train_teacher.yaml"],
        description=__doc__,
    )

    def build(classes, names):
        if network.evaluate_only:
            return network_to_evaluate(network.network_name, classes, network.checkpoint, names), None
        return image_classifier(network.network_name, classes, network.checkpoint, names, network.new_head), None

    trainer = image_trainer(build, data, args)
    if network.evaluate_only:
        trainer.log_metrics("eval", trainer.evaluate())
    else:
        run_classifier(trainer, vars(network) | vars(data) | trainer.settings)


if __name__ == "__main__":
    main()
