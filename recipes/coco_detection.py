"""Object detection: distil a Faster R-CNN into a smaller one on its proposals, or train one on the labels alone.

    accelerate launch recipes/coco_detection.py --config recipes/configs/coco128_detection.yaml \\
        --dataset_name data/coco128 --kd_weight 0 --evaluate_kl false --output_dir runs/boxes_teacher \\
        --student_levels 2 3 4 --student_fpn_channels 64 --student_head_size 256
    accelerate launch recipes/coco_detection.py --config recipes/configs/coco128_detection.yaml \\
        --dataset_name data/coco128 --teacher_checkpoint runs/boxes_teacher/model.safetensors

Supports data in COCO format, or with a column objects; networks are torchvision's FasterRCNN with backbones of
torchvision or timm. Method by flag: `--weighting "entropy(temperature=4, level='item')"` is EA-KD, with `--objective
"reviewkd(layers='1:', teacher_layers='1:', warmup_epochs=0, max_middle=256)"` EA-ReviewKD on the maps of the pyramids.
Protocol: configs/coco_detection.yaml. Published (EA-KD, Table 5): configs/pairs/fpn_*.yaml. Ours: docs/results.md.
"""

from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data.box_arguments import BoxDataArguments
from hfkd.experiments.detection import ScoreArguments, detection_trainer, run_detection
from hfkd.models.detection_arguments import DetectionNetworkArguments
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    networks, data, score, args = parse(
        (DetectionNetworkArguments, BoxDataArguments, ScoreArguments, DistillationArguments),
        defaults=[CONFIGS / "coco_detection.yaml"],
        description=__doc__,
    )
    trainer = detection_trainer(networks, data, args)
    run_detection(trainer, vars(networks) | vars(data) | trainer.settings, score.score_training)


if __name__ == "__main__":
    main()
