"""Compare a teacher with its students on the same images: the figures of Energy KD and EA-KD, and numbers as JSON.

    python recipes/analyse.py --teacher cifar_wrn_40_2 --teacher_checkpoint wrn_40_2.pth \\
        --students cifar_resnet20 --student_checkpoints resnet20.pth

A student is the output folder of a run, a Hub id, or a timm name with its checkpoint. No network is trained or changed.
Writes index.html and analysis.json to --output_dir. `--task segmentation` compares segmentation networks, and has its
own flags (`--task segmentation --help`).
"""

import argparse

from hfkd.data import ImageDataArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.experiments.analyse import AnalysisArguments, analyse
from hfkd.experiments.analyse_masks import MaskAnalysisArguments, analyse_masks
from hfkd.utils.parsing import parse


def main() -> None:
    tasks = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    tasks.add_argument("--task", choices=["images", "segmentation"], default="images")
    if tasks.parse_known_args()[0].task == "segmentation":
        analyse_masks(*parse((MaskAnalysisArguments, MaskDataArguments), description=__doc__))
    else:
        analyse(*parse((AnalysisArguments, ImageDataArguments), description=__doc__))


if __name__ == "__main__":
    main()
