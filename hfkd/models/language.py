"""Causal language models and their tokenizers: from the Hub, a folder, a configuration, or a PEFT adapter."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available
from transformers.utils.peft_utils import find_adapter_config_file

from hfkd.models.checkpoints import models_inside, naming_unreadable, refuse_no_model
from hfkd.models.tokenizers import stored_tokenizer
from hfkd.utils.launch import processes

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def causal_lm(
    name_or_path: str | Path,
    dtype: str | None = None,
    from_config: bool = False,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """A causal language model by Hub id or folder; `from_config`: a configuration with new weights.

    `dtype` is one of `DTYPES`; "auto" is the dtype of the stored weights, and None is float32, which a model that is
    trained under autocast needs. 8 and 4 bits need bitsandbytes and are meant for teachers. For a PEFT checkpoint the
    base model is loaded, at the revision that the adapter names, and the adapter merged into it (not merged if
    quantised). No code from the Hub is run. Raises ValueError for conflicting settings, and for an adapter without the
    name of its base model.
    """
    name, dtype = str(name_or_path), dtype or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: pass one of {list(DTYPES)}")
    if from_config:
        if load_in_8bit or load_in_4bit:
            raise ValueError(
                "from_config makes random weights, which are not quantised: leave out from_config, or load_in_8bit "
                "and load_in_4bit"
            )
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32 if dtype == "auto" else dtype)
    return _stored(name, dtype, _quantisation(load_in_8bit, load_in_4bit))


def _stored(name: str, dtype: str, quantisation: dict[str, Any], revision: str | None = None) -> PreTrainedModel:
    refuse_no_model(name)
    at: dict[str, Any] = {"revision": revision} if revision else {}
    if find_adapter_config_file(name, **at) is not None:
        return _with_adapter(name, dtype, quantisation, at)
    with naming_unreadable(name):
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, **at, **quantisation)


def _quantisation(load_in_8bit: bool, load_in_4bit: bool) -> dict[str, Any]:
    if not (load_in_8bit or load_in_4bit):
        return {}
    if load_in_8bit and load_in_4bit:
        raise ValueError("load_in_8bit and load_in_4bit are both True: choose one")
    if not is_bitsandbytes_available():
        raise ValueError(
            "load_in_8bit and load_in_4bit need bitsandbytes, which is not installed: pip install bitsandbytes, or "
            "leave them out"
        )
    config = BitsAndBytesConfig(
        load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": config, "device_map": {"": processes().device}}


def _with_adapter(name: str, dtype: str, quantisation: dict[str, Any], at: dict[str, Any]) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel  # only needed for an adapter

    config = PeftConfig.from_pretrained(name, **at)
    base_name = config.base_model_name_or_path
    if not base_name:
        raise ValueError(
            f"the adapter in {name} does not name its base model: set base_model_name_or_path in adapter_config.json"
        )
    logger.info("%s is an adapter of %s", name, base_name)
    base = _stored(base_name, dtype, quantisation, config.revision)
    with naming_unreadable(name):
        adapted: Any = PeftModel.from_pretrained(base, name, **at)
    if quantisation:
        return adapted
    if not all(getattr(config, "ensure_weight_tying", False) for config in adapted.peft_config.values()):
        _untie_adapted(base)
    return adapted.merge_and_unload()


def _untie_adapted(base: Any) -> None:
    """Give output head and embeddings, if an adapter is on one of them, weights of their own: merged, they differ."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, table = base.get_output_embeddings(), base.get_input_embeddings()
    if not any(isinstance(layer, BaseTunerLayer) for layer in (head, table)):
        return
    head, table = (getattr(layer, "base_layer", layer) for layer in (head, table))
    if head.weight is table.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False


def load_tokenizer(name_or_path: str | Path, fallback: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id or a folder; that of `fallback` if a folder or a configuration file has none."""
    if brings_tokenizer(name_or_path):
        return stored_tokenizer(name_or_path)
    if fallback is None:
        if models_inside(name_or_path):
            refuse_no_model(name_or_path)
        raise ValueError(f"{name_or_path} has no tokenizer: save one with the model, or pass --tokenizer_name")
    return stored_tokenizer(fallback)


def refuse_unused_tokenizer(
    given: str | None, used: Sequence[PreTrainedTokenizerBase], flag: str = "tokenizer_name"
) -> None:
    """Raise ValueError if the tokenizer `given` is another than all of `used`, as each network has one of its own."""
    if not given:
        return
    tokens = load_tokenizer(given).get_vocab()
    if all(one.get_vocab() != tokens for one in used):
        names = " and ".join(dict.fromkeys(str(one.name_or_path) for one in used))
        raise ValueError(
            f"{flag}={given!r} is only for a network without a tokenizer, and has other tokens than that of {names}, "
            f"which would be used: leave {flag} out, or replace the tokenizer saved there if the network was trained "
            "with the other one"
        )


def brings_tokenizer(name_or_path: str | Path) -> bool:
    """Whether a folder has a tokenizer; for a Hub id this is assumed.

    For a folder without one, transformers would create an empty tokenizer.
    """
    path = Path(name_or_path).expanduser()
    return not path.is_file() and (not path.is_dir() or any(any(path.glob(names)) for names in TOKENIZER_FILES))
