"""Evaluate saved students by ROUGE-L on the five instruction sets of MiniLLM and DSKD: mean over five sampling seeds.

    accelerate launch recipes/evaluate_instruct.py --student_name_or_path runs/dolly_eakd runs/dolly_kd

Prints each student's row of the papers' table (Dolly, SInst, Vicuna, S-NI, UnNI, average) and all students side by
side. Every answer is in <output_dir>/<student>. The number of processes does not change the answers.
"""

from dataclasses import dataclass, field

from hfkd.experiments.instruct import InstructArguments, evaluate_students
from hfkd.models.language import causal_lm, load_tokenizer, refuse_unused_tokenizer
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse


@dataclass
class StudentArguments:
    student_name_or_path: list[str] = field(metadata={"help": "Students: Hub ids, folders or PEFT checkpoints."})
    dtype: str = flag("float32", "float32, bfloat16, float16 or auto (as stored).")
    tokenizer_name: str | None = flag(None, "Tokenizer for a student without its own.")


def main() -> None:
    students, instruct = parse((StudentArguments, InstructArguments), description=__doc__)
    names, given = students.student_name_or_path, students.tokenizer_name
    refuse_unused_tokenizer(given, [load_tokenizer(name, given) for name in names] if given else [])

    def load(name):
        return causal_lm(name, students.dtype), load_tokenizer(name, given)

    evaluate_students(names, load, instruct)


if __name__ == "__main__":
    main()
