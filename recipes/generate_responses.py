"""Generate a teacher's responses to the prompts of an instruction dataset, for sequence-level KD (Kim and Rush, 2016).

    accelerate launch recipes/generate_responses.py --model_name_or_path runs/dolly_teacher --output_dir runs/answers
    accelerate launch recipes/sft.py --model_name_or_path gpt2 --dataset_name runs/answers

Dolly by default, with prompts in the format of sft.py and gpt2_dolly_eakd.py. Both read the folder with
`--dataset_name`. An interrupted run is resumed by the same command, on any number of processes.
"""

from dataclasses import dataclass

from transformers import set_seed

from hfkd.experiments.responses import ResponseArguments, generate_responses, said
from hfkd.models.language import causal_lm, load_tokenizer, refuse_unused_tokenizer
from hfkd.utils.flags import flag
from hfkd.utils.launch import processes
from hfkd.utils.parsing import parse


@dataclass
class NetworkArguments:
    model_name_or_path: str = flag("MiniLLM/teacher-gpt2-1.5B", "A Hub id, a folder or a PEFT checkpoint.")
    dtype: str = flag("float32", "float32, bfloat16, float16 or auto (as stored).")
    from_config: bool = flag(False, "Random weights, only for testing offline.")
    tokenizer_name: str | None = flag(None, "Tokenizer for a model without its own.")


def main() -> None:
    network, args = parse((NetworkArguments, ResponseArguments), description=__doc__)
    set_seed(args.seed)
    name = network.model_name_or_path
    tokenizer = load_tokenizer(name, network.tokenizer_name)
    refuse_unused_tokenizer(network.tokenizer_name, [tokenizer])
    model = causal_lm(name, network.dtype, network.from_config)
    counts = generate_responses(model, tokenizer, args, name)
    if processes().is_main_process:
        print(f"{said(counts)}\nThe dataset is in {args.output_dir}", flush=True)


if __name__ == "__main__":
    main()
