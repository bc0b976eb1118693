"""Small language models, rows of tokens and a tokenizer, all made here."""

import torch
from datasets import Dataset
from text_tokenizer import WORDS, word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from hfkd.utils.targets import IGNORED

VOCAB = len(WORDS)


def language_model(width=16, vocab=VOCAB, seed=0, layers=1, positions=32, dropout=0.0):
    """GPT-2, by default without dropout, so that splitting a batch changes nothing but rounding."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=positions,
        bos_token_id=1,
        eos_token_id=1,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return GPT2LMHeadModel(config)


def taught_model(width=24, vocab=VOCAB):
    """Confident about some tokens and not about others, so that energies and entropies spread."""
    model = language_model(width, vocab, seed=1)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    return model


class TokenRows(torch.utils.data.Dataset):
    """Rows of different lengths, the prompt masked."""

    def __init__(self, n=32, seed=0, low=4, high=14):
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(n):
            length = int(torch.randint(low, high, (), generator=g))
            ids = torch.randint(3, VOCAB, (length,), generator=g).tolist()
            prompt = int(torch.randint(1, length - 1, (), generator=g))
            self.rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def tokenizer():
    return word_tokenizer()


def token_dataset(n=32, seed=0):
    """`TokenRows` as `tokenize_dataset` gives rows: a dataset with an index."""
    rows = TokenRows(n, seed).rows
    return Dataset.from_list([row | {"index": i} for i, row in enumerate(rows)])


def mixture_of_experts(seed=0, **keywords):
    """Mixtral with a router loss of its own; no dropout."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "vocab_size": VOCAB, "num_local_experts": 4, "max_position_embeddings": 32}
    config = MixtralConfig(
        **sizes, output_router_logits=True, router_aux_loss_coef=0.5, initializer_range=0.3, bos_token_id=1, **keywords
    )
    return MixtralForCausalLM(config)
