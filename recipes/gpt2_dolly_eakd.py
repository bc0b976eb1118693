"""Distil an instruction-tuned GPT-2 XL into GPT-2 on databricks-dolly-15k with EA-KD (Su et al., 2023-2025).

    accelerate launch recipes/gpt2_dolly_eakd.py --eval_rouge

Protocol: configs/dolly.yaml, the set-up of DSKD, which is MiniLLM's data and schedule at T = 2 without T². Other
objectives are in configs/ (`--config recipes/configs/dolly_jsd.yaml`). An interrupted run is resumed by the same
command; recipes/evaluate_instruct.py evaluates the student. `--teacher_cache_dir DIR` stores the teacher's outputs
once, for this run and later ones. A teacher with another tokenizer than the student needs `--objective gold` or `uld`.
All settings are flags, see --help.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import set_seed

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text_arguments import TextDataArguments
from hfkd.evaluation.callback import RougeArguments
from hfkd.experiments.cache_arguments import TeacherCacheArguments
from hfkd.experiments.earlier_run import warn_of_template
from hfkd.experiments.run import run_text
from hfkd.experiments.teacher_tokenizer import TeacherTokenizerArguments
from hfkd.models.language import causal_lm
from hfkd.models.lora import LoraArguments
from hfkd.models.pruned_student import PrunedStudentArguments
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class NetworkArguments(PrunedStudentArguments):
    teacher_name_or_path: str = flag("MiniLLM/teacher-gpt2-1.5B", "Teacher: a Hub id, a folder or a PEFT checkpoint.")
    student_name_or_path: str = flag("gpt2", "Student: a Hub id or a folder.")
    from_config: bool = flag(False, "Start the student from random weights.")
    teacher_from_config: bool = flag(False, "Random weights for the teacher, only for testing offline.")
    teacher_dtype: str = flag("auto", "auto (as stored), float32, bfloat16 or float16.")
    teacher_load_in_8bit: bool = flag(False, "Load the teacher in 8 bits (bitsandbytes).")
    teacher_load_in_4bit: bool = flag(False, "Load the teacher in 4 bits (bitsandbytes).")
    tokenizer_name: str | None = flag(None, "Tokenizer for a model without its own, such as a configuration.")

    def __post_init__(self) -> None:
        super().__post_init__()
        fresh = next((name for name in ("from_config", "teacher_from_config") if getattr(self, name)), None)
        self.student_name_or_path = self.teacher_as_student(self.student_name_or_path, self.teacher_name_or_path, fresh)


def main() -> None:
    networks, its, data, cache, lora, rouge, args = parsed = parse(
        (
            NetworkArguments,
            TeacherTokenizerArguments,
            TextDataArguments,
            TeacherCacheArguments,
            LoraArguments,
            RougeArguments,
            DistillationArguments,
        ),
        defaults=[CONFIGS / "dolly.yaml", CONFIGS / "dolly_eakd.yaml"],
        description=__doc__,
    )
    args = rouge.best_by_rouge(args, parsed.given)
    names = networks.student_name_or_path, networks.teacher_name_or_path
    tokenizer, teachers = its.both(names, networks.tokenizer_name, args)
    with args.main_process_first(desc="tokenising"):
        texts = data.load(tokenizer, teachers, its.teacher_max_length)
    warn_of_template(names[1], data.templated, "teaches on prompts")
    rouge.check_rows(texts.dev_texts)
    set_seed(args.seed)
    student = networks.pruned(causal_lm(networks.student_name_or_path, from_config=networks.from_config))
    how = (
        networks.teacher_dtype,
        networks.teacher_from_config,
        networks.teacher_load_in_8bit,
        networks.teacher_load_in_4bit,
    )
    load, slots = partial(causal_lm, names[1], *how), (args.temperature, args.mixed_precision, how)
    teacher = cache.teacher(args.teacher_cache_dir, load, names[1], texts.train, student, tokenizer, *slots)
    trainer = DistillationTrainer(
        student,
        teacher,
        args,
        peft_config=lora.config(),
        processing_class=tokenizer,
        teacher_processing_class=teachers or tokenizer,  # compared above
        train_dataset=texts.train,
        eval_dataset=texts.dev,
    )
    rouge.add_to(trainer, texts.dev_texts, **data.generation_settings)
    flags = (networks, its, data, cache, lora, rouge)
    run_text(trainer, {name: value for one in flags for name, value in vars(one).items()} | trainer.settings)


if __name__ == "__main__":
    main()
