"""Text classification: distil a fine-tuned teacher into a smaller network, or train one on the labels alone.

    accelerate launch recipes/text_classification.py --teacher_name_or_path textattack/bert-base-uncased-SST-2
    accelerate launch recipes/text_classification.py --kd_weight 0 --ce_weight 1 --output_dir runs/text_teacher \\
        --student_name_or_path google-bert/bert-base-uncased

Supports any dataset with a column of texts (or two, --text_pair_column) and one of labels. The second command trains a
teacher, whose folder can be used as --teacher_name_or_path. Offline, networks can start from a model type with a
configuration and a tokenizer trained on the training texts (`--from_config --student_name_or_path bert
--student_config num_hidden_layers=4,hidden_size=128 --train_tokenizer 8000`). Method by flag: `--temperature energy` is
Energy KD, `--weighting entropy` EA-KD.
Protocol: configs/text_classification.yaml. Published: none of this protocol. Ours: docs/results.md.
"""

from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data.labelled_texts import LabelledTextArguments
from hfkd.experiments.classifier_run import run_classifier
from hfkd.experiments.distil_text import text_classification_trainer
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    networks, data, args = parse(
        (TextNetworkArguments, LabelledTextArguments, DistillationArguments),
        defaults=[CONFIGS / "text_classification.yaml"],
        description=__doc__,
    )
    trainer = text_classification_trainer(networks, data, args)
    run_classifier(trainer, vars(networks) | vars(data) | trainer.settings, items_name="texts")


if __name__ == "__main__":
    main()
