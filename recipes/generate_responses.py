"""Write a teacher's responses to an instruction data set's prompts, for sequence-level KD (Kim and Rush, 2016).

    accelerate launch recipes/generate_responses.py --model_name_or_path runs/dolly_teacher --output_dir runs/answers
    accelerate launch recipes/sft.py --model_name_or_path gpt2 --dataset_name runs/answers

Dolly by default, its prompts written as sft.py and gpt2_dolly_eakd.py write them. Both read the folder by
`--dataset_name`. A run that was stopped is taken up where it stopped, on any number of processes.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from hfkd.experiments.responses import ResponseArguments, generate_responses, said
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.utils.launch import processes
from hfkd.utils.parsing import parse


@dataclass
class NetworkArguments:
    model_name_or_path: str = field(
        default="MiniLLM/teacher-gpt2-1.5B", metadata={"help": "A Hub id, a folder or a PEFT checkpoint."}
    )
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16, float16 or auto (as stored)."})
    from_config: bool = field(default=False, metadata={"help": "Fresh weights: only for trying this offline."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer for a model that brings none."})


def main() -> None:
    network, args = parse((NetworkArguments, ResponseArguments), description=__doc__)
    set_seed(args.seed)
    name = network.model_name_or_path
    model = causal_lm(name, network.dtype, network.from_config)
    counts = generate_responses(model, load_tokenizer(name, network.tokenizer_name), args, name)
    if processes().is_main_process:
        print(f"{said(counts)}\nThe data set is {args.output_dir}", flush=True)


if __name__ == "__main__":
    main()
