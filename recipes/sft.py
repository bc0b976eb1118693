"""Fine-tune a language model on instructions, without a teacher: for the teacher of gpt2_dolly_eakd.py, or a baseline.

    accelerate launch recipes/sft.py
    accelerate launch recipes/sft.py --model_name_or_path gpt2 --learning_rate 5e-4 --num_train_epochs 20

Protocol: configs/dolly.yaml with MiniLLM's teacher schedule, configs/dolly_sft.yaml. Its output folder can be used as
`--teacher_name_or_path` of the other recipes.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text_arguments import TextDataArguments
from hfkd.evaluation.callback import RougeArguments
from hfkd.experiments.run import run_text
from hfkd.models.language import causal_lm, load_tokenizer, refuse_unused_tokenizer
from hfkd.models.lora import LoraArguments
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class NetworkArguments:
    model_name_or_path: str = flag("gpt2-xl", "A Hub id or a folder.")
    from_config: bool = flag(False, "Start from random weights.")
    tokenizer_name: str | None = flag(None, "Tokenizer for a model without its own.")


def main() -> None:
    network, data, lora, rouge, args = parsed = parse(
        (NetworkArguments, TextDataArguments, LoraArguments, RougeArguments, DistillationArguments),
        defaults=[CONFIGS / "dolly.yaml", CONFIGS / "dolly_sft.yaml"],
        description=__doc__,
    )
    args = rouge.best_by_rouge(args, parsed.given)
    tokenizer = load_tokenizer(network.model_name_or_path, network.tokenizer_name)
    refuse_unused_tokenizer(network.tokenizer_name, [tokenizer])
    with args.main_process_first(desc="tokenising"):
        texts = data.load(tokenizer)
    rouge.check_rows(texts.dev_texts)
    set_seed(args.seed)
    trainer = DistillationTrainer(
        causal_lm(network.model_name_or_path, from_config=network.from_config),
        None,
        args,
        peft_config=lora.config(),
        processing_class=tokenizer,
        train_dataset=texts.train,
        eval_dataset=texts.dev,
    )
    rouge.add_to(trainer, texts.dev_texts, **data.generation_settings)
    run_text(trainer, vars(network) | vars(data) | vars(lora) | vars(rouge) | trainer.settings)


if __name__ == "__main__":
    main()
