"""Semantic segmentation: distil a teacher into a smaller network, or train one on the labels alone.

    accelerate launch recipes/segmentation.py --dataset_name data/camvid --kd_weight 0 --ce_weight 1 \\
        --student_name deeplabv3_mobilenet_v3_large --output_dir runs/masks_teacher
    accelerate launch recipes/segmentation.py --dataset_name data/camvid \\
        --teacher_name deeplabv3_mobilenet_v3_large --teacher_checkpoint runs/masks_teacher/model.safetensors

Supports any dataset with a column of images and one of masks; networks are from torchvision, transformers, or a
function in your own module (`espnet:load`). For a teacher with other classes: `--teacher_classes 0 1 2 ...`.
Method by flag: `--temperature energy` is Energy KD per image, `--temperature "energy(level='item')"` per pixel;
`--weighting entropy` EA-KD; `--objective "3 * cwd"` CWD.
In short runs set `--batch_norm_momentum 0.1`: torchvision's MobileNetV3 has 0.01, and its statistics lag behind.
Protocol: configs/segmentation.yaml. Published: none of this protocol. Ours: docs/results.md.
"""

from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.experiments.segmentation import run_segmentation, segmentation_trainer
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    networks, data, args = parse(
        (SegmentationNetworkArguments, MaskDataArguments, DistillationArguments),
        defaults=[CONFIGS / "segmentation.yaml"],
        description=__doc__,
    )
    trainer = segmentation_trainer(networks, data, args)
    run_segmentation(trainer, vars(networks) | vars(data) | trainer.settings)


if __name__ == "__main__":
    main()
