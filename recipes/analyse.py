"""Compare a teacher with its students on the same images: every picture of the papers, and their numbers as JSON.

    python recipes/analyse.py --teacher cifar_wrn_40_2 --teacher_checkpoint wrn_40_2.pth \\
        --students cifar_resnet20 --student_checkpoints resnet20.pth

A student is a folder that a run left, a Hub id, or a timm name with its checkpoint. One pass of each network; no
network is trained or changed. Leaves index.html and analysis.json in --output_dir.
"""

from hfkd.data import ImageDataArguments
from hfkd.experiments.analyse import AnalysisArguments, analyse
from hfkd.utils.parsing import parse


def main() -> None:
    arguments, data = parse((AnalysisArguments, ImageDataArguments), description=__doc__)
    analyse(arguments, data)


if __name__ == "__main__":
    main()
