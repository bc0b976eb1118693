"""Run by every rank of a test: train a student whose layers are split over the ranks, or on one rank whole."""

import json
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from text_toys import VOCAB, TokenRows, tokenizer
from toys import arguments
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed
from transformers.distributed import DistributedConfig

from hfkd import DistillationTrainer


def llama(width=16, seed=0):
    set_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "vocab_size": VOCAB, "max_position_embeddings": 32, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=1))


if __name__ == "__main__":
    out, keywords = sys.argv[1], json.loads(sys.argv[2])
    folder, slots = keywords.pop("folder"), {k: keywords.pop(k) for k in ("temperature", "weighting")}
    args = arguments(out, **keywords)
    ways = {}
    if args.world_size > 1:
        PartialState().distributed_type = DistributedType.MULTI_GPU  # accelerate splits none on CPUs
        ways = {"distributed_config": DistributedConfig(tp_size=args.world_size)}
    trainer = DistillationTrainer(
        AutoModelForCausalLM.from_pretrained(folder, **ways),
        llama(24, seed=1),
        args,
        processing_class=tokenizer(),
        train_dataset=TokenRows(30).rows,
        eval_dataset=TokenRows(13, seed=3).rows,
        compute_metrics=lambda found: {"rows": len(found.predictions)},
        **slots,
    )
    trainer.train()
    score = trainer.evaluate()
    trainer.save_model(f"{out}/saved")
    record = {"log": trainer.state.log_history, "scores": score, "batch": trainer.settings["batch_size"]}
    record["thresholds"] = trainer.distillation_loss.temperature.thresholds
    if trainer.is_world_process_zero():
        with open(f"{out}/record.json", "w") as file:
            json.dump(record, file)
