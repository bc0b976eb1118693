"""Run by test_evaluation_generation.py on two ranks: each of them keeps what it was given back."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfkd.evaluation import TextGenerator, evaluate_sets

work, out = json.loads(sys.argv[1]), Path(sys.argv[2])
state = PartialState(cpu=True)
assert state.num_processes == 2
tokenizer = AutoTokenizer.from_pretrained(work["model"])
model = DistributedDataParallel(AutoModelForCausalLM.from_pretrained(work["model"]))
settings = work["settings"] | {"batch_size": 2}
generator = TextGenerator(model, tokenizer, **settings)
texts = [generator(prompts, seed=10) for prompts in (work["prompts"], work["prompts"][:1])]
tales = Dataset.from_dict({"prompt": work["prompts"], "references": [["a dog ran"]] * len(work["prompts"])})
scores = evaluate_sets(model, tokenizer, {"tales": tales}, out / "scores", seeds=(10,), **settings)
(out / f"rank{state.process_index}.json").write_text(json.dumps({"texts": texts, "scores": scores}))
state.destroy_process_group()
