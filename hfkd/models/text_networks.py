"""Text networks by head: from the Hub, a folder, or a configuration with random weights.

C classes.
"""

import os
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.checkpoints import naming_unreadable, refuse_no_model
from hfkd.models.label_names import warn_of_renamed
from hfkd.utils.messages import some

SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def fresh_network(
    auto: Any, name: str, tokenizer: PreTrainedTokenizerBase, changes: str | None = None, **labels: Any
) -> PreTrainedModel:
    """A network with random weights, for the vocabulary of `tokenizer`.

    `name` is a model type of transformers ("bert", with its default configuration), a Hub id or a folder; `changes` are
    settings of its configuration, such as "num_hidden_layers=2,hidden_size=128". `auto` is a transformers Auto class;
    `labels` are label settings of a classifier, such as `id2label`. Raises ValueError for changes that the
    configuration does not accept.
    """
    config = (
        AutoConfig.for_model(name) if is_model_type(name) else AutoConfig.from_pretrained(name, trust_remote_code=False)
    )
    config.vocab_size = len(tokenizer)
    for token in SPECIAL_IDS:
        if hasattr(config, token):
            setattr(config, token, getattr(tokenizer, token, None))
    _change(config, changes)
    if config.vocab_size < len(tokenizer):
        raise ValueError(_too_small(name, config.vocab_size, tokenizer))
    for setting, value in labels.items():
        setattr(config, setting, value)
    return auto.from_config(config)


def is_model_type(name: str) -> bool:
    return name in CONFIG_MAPPING and not os.path.isdir(name)


def stored_network(
    auto: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str = "float32",
    ignore_mismatched_sizes: bool = False,
    **labels: Any,
) -> PreTrainedModel:
    """The network stored under a Hub id or in a folder; weights that are not stored, such as a new head, are random.

    Raises ValueError for a head of another size, unless `ignore_mismatched_sizes` replaces it by a new one, and for an
    adapter.
    """
    network, info = loaded(auto, name, dtype, **labels)
    if network._hf_peft_config_loaded:
        raise ValueError(
            f"the student {name} is an adapter, of which transformers would train nothing but a new head: merge it "
            "into its base (PeftModel.merge_and_unload, save_pretrained), and pass that folder"
        )
    if info["mismatched_keys"] and not ignore_mismatched_sizes:
        weight, stored, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"{weight} of {name} has the shape {list(stored)}, but the classes of the data need {list(wanted)}: pass "
            "--ignore_mismatched_sizes to replace it by new weights, or use data with its classes"
        )
    if "id2label" in labels and not (info["mismatched_keys"] or info["missing_keys"]):
        warn_of_renamed(name, list(labels["id2label"].values()))
    return _ready(network, tokenizer, name)


def text_teacher(auto: Any, name: str, tokenizer: PreTrainedTokenizerBase, dtype: str = "auto") -> PreTrainedModel:
    """`stored_network` for a trained network: raises ValueError if a part of it has no stored weights.

    A base model without a classifier would otherwise get a random one. The teacher keeps its own class names.
    """
    network, info = loaded(auto, name, dtype)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the teacher {name} has no stored weights for {some(missing)}, which would be random in its "
            f"{type(network).__name__}: use a network that was trained for this task, or train one by this recipe "
            "with --kd_weight 0 --ce_weight 1"
        )
    if mismatched := sorted(key for key, *_ in info["mismatched_keys"]):
        raise ValueError(
            f"the teacher {name} has other shapes for {some(mismatched)} than its {type(network).__name__}, as the "
            "base of an adapter has for the head of another number of classes: merge the adapter into its base "
            "(PeftModel.merge_and_unload, save_pretrained), and pass that folder"
        )
    return _ready(network, tokenizer, name)


def loaded(auto: Any, name: str, dtype: str, **labels: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A stored network, and transformers' report of missing and mismatched weights."""
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    refuse_no_model(name)
    with naming_unreadable(name):
        return auto.from_pretrained(name, dtype=dtype, **options, **labels)


def _ready(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedModel:
    embeddings: Any = network.get_input_embeddings()
    if embeddings.num_embeddings < len(tokenizer):
        raise ValueError(_too_small(name, embeddings.num_embeddings, tokenizer))
    if getattr(network.config, "pad_token_id", None) is None:  # decoders find the last token of a row by it
        network.config.pad_token_id = tokenizer.pad_token_id
    return network


def _too_small(name: str, embeddings: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"{name} has {embeddings} embeddings, but the tokenizer has {len(tokenizer)} tokens: student and teacher must "
        "both fit the teacher's tokenizer"
    )


def _change(config: PreTrainedConfig, changes: str | None) -> None:
    """Change settings of a configuration. Raises ValueError for settings that it does not have."""
    if not changes:
        return
    try:
        config.update_from_string(changes)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{changes!r} cannot be set on a configuration of {config.model_type} ({error}): write name=value, "
            "separated by commas, such as num_hidden_layers=2,hidden_size=128"
        ) from error
