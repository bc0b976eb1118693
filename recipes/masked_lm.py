"""Pre-train a smaller masked language model by distillation, as DistilBERT was (Sanh et al. 2019).

    accelerate launch recipes/masked_lm.py --teacher_name_or_path google-bert/bert-base-uncased \\
        --student_name_or_path distilbert --from_config

Protocol: configs/masked_lm.yaml, with DistilBERT's temperature, weights and rate. Difference: the loss is computed on
masked tokens only (the release distils on every token). Two parts of DistilBERT are options: the cosine loss on hidden
states (`--objective "kd + 0.2 * hidden_cosine"`), and a student that starts from its teacher's layers (`--student_init
teacher --student_layers 6` instead of the two student flags). `--temperature energy` and `--weighting entropy` choose
temperature and weight for each row, with `level='item'` for each masked token. The masked tokens depend on seed, epoch
and row. Published: not comparable. Ours: not run at full length.
"""

from pathlib import Path

from hfkd import DistillationArguments
from hfkd.data.plain_texts import PlainTextArguments
from hfkd.experiments.distil_text import masked_lm_trainer
from hfkd.experiments.run import run_text
from hfkd.models.text_network_arguments import TextNetworkArguments
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    networks, data, args = parse(
        (TextNetworkArguments, PlainTextArguments, DistillationArguments),
        defaults=[CONFIGS / "masked_lm.yaml"],
        description=__doc__,
    )
    trainer = masked_lm_trainer(networks, data, args)
    run_text(trainer, vars(networks) | vars(data) | trainer.settings)


if __name__ == "__main__":
    main()
