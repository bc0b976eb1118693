"""The loss of a step on the student's own responses is that of TRL's GKD trainer, on the same responses."""

import pytest
import torch
from text_toys import VOCAB, token_dataset, tokenizer
from toys import arguments
from transformers import LlamaConfig, LlamaForCausalLM

from hfkd import DistillationTrainer

pytest.importorskip("trl.experimental.gkd", reason="TRL is not installed")
BETAS = (0.0, 0.3, 1.0)
OBJECTIVES = {0.0: "kd(scale='none')", 0.3: "jsd(beta=0.3, scale='none')", 1.0: "reverse_kl(scale='none')"}
ROWS = token_dataset(8, seed=5)


def llama(seed, spread):
    """Positions count relative to each other, so that TRL's padding at the start changes nothing."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, eos_token_id=1, pad_token_id=0, bos_token_id=1))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(spread)
    return model


def prompts(rows):
    """What TRL's collator gives of the rows: itself padded at the start, and the prompts alone."""
    from hfkd.data.text_collate import TokenCollator

    batch = TokenCollator(0, padding_side="left")(rows)
    starts = [next(i for i, label in enumerate(row["labels"]) if label != -100) for row in rows]
    alone = [{"input_ids": row["input_ids"][:start]} for row, start in zip(rows, starts, strict=True)]
    asked = TokenCollator(0, padding_side="left")(alone)
    names = ("input_ids", "attention_mask", "labels")
    more = {"prompts": asked["input_ids"], "prompt_attention_mask": asked["attention_mask"]}
    return {name: batch[name] for name in names} | more


@pytest.mark.slow
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.filterwarnings("ignore")
def test_the_same_loss_as_trl(tmp_path, beta):
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    same = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}
    same |= {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "seed": 0}
    own = {"lmbda": 1.0, "beta": beta, "temperature": 1.0, "max_new_tokens": 6, "gradient_checkpointing": False}
    theirs = GKDTrainer(
        model=llama(1, 3.0),
        teacher_model=llama(2, 5.0),
        args=GKDConfig(str(tmp_path / "trl"), **same, **own),
        data_collator=prompts,
        train_dataset=ROWS,
        processing_class=tokenizer(),
    )
    theirs.generation_config.do_sample = False  # the likeliest token: both then write the same
    seen = []
    compute_loss = theirs.compute_loss
    theirs.compute_loss = lambda model, inputs, **keywords: (
        seen.append(inputs) or compute_loss(model, inputs, **keywords)
    )
    theirs.train()
    ours = DistillationTrainer(
        llama(1, 3.0),
        llama(2, 5.0),
        arguments(
            tmp_path / "hfkd",
            **same,
            on_policy=1.0,
            on_policy_temperature=0.0,
            on_policy_max_new_tokens=6,
            ce_weight=0.0,
            kd_weight=1.0,
            temperature=1.0,
            objective=OBJECTIVES[beta],
        ),
        train_dataset=ROWS,
        processing_class=tokenizer(),
    )
    ours.train()
    # TRL divides by the labels of the rows' own responses, which it counted before it wrote others.
    written = sum((one["labels"][:, 1:] != -100).sum().item() for one in seen)
    counted = sum(label != -100 for row in ROWS for label in row["labels"][1:])
    losses = [next(entry["loss"] for entry in t.state.log_history if "grad_norm" in entry) for t in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1] * counted / written, rel=1e-5)
