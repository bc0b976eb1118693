"""Whether hfkd computes the loss that a network was made for: compared on two rows, before anything is trained.

B rows, L length, C classes or vocabulary.
"""

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfkd.losses.distillation import cross_entropy
from hfkd.losses.items import TOKENS, ItemRule
from hfkd.models.calling import Call, bare, logits_of
from hfkd.utils.buffers import KeptBuffers
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

PROBED_TOKENS = 8
ALONG_TOKENS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "labels")  # [B, L] each


class _NoLoss(Exception):
    """The network's name, and what happened when it was given labels."""


@torch.no_grad()
def compare_own_loss(network: nn.Module, batch: Mapping[str, Any] | None, rule: ItemRule) -> None:
    """Raise ValueError where a model of transformers and hfkd disagree about the loss of `batch`, on its device.

    hfkd's cross-entropy, and the router loss where there is one, must equal the model's own `.loss`: both come from the
    same logits, so whatever differs is the rule, such as whether labels are shifted by one. The model is in eval mode;
    its modes, buffers and config and torch's random state are as before. A model that computes no loss passes.
    Without a `batch`, on made-up tokens.
    """
    network = extract_model_from_parallel(network, keep_torch_compile=False)
    inside = bare(network)
    parameter = next(network.parameters(), None)
    names = Call.of(network).keywords
    if not isinstance(inside, PreTrainedModel) or parameter is None or parameter.is_meta or names is None:
        return
    if "labels" not in inspect.signature(inside.forward).parameters:
        return
    if batch is None:
        batch = _made_up_tokens(network)
    inputs = few_tokens(batch) if rule is TOKENS else dict(batch)
    with untouched(network):
        _compare(network, inputs, rule)


def _compare(network: nn.Module, inputs: dict[str, Any], rule: ItemRule) -> None:
    labels = _labels(network, inputs, rule)
    try:
        own, ours, logits = _losses(network, inputs, labels, rule)
    except _NoLoss as error:
        logger.warning("%s cannot compute a loss of its own (%s): hfkd's is not compared with it.", *error.args)
        return
    if own is None or not math.isfinite(ours):  # a broken network is said elsewhere
        return
    few_bits = logits.dtype in (torch.bfloat16, torch.float16)  # where a model does not compute its loss in float32
    tolerance = (2 * torch.finfo(logits.dtype).eps if few_bits else 1e-4) * max(abs(ours), 1.0)
    if not abs(own - ours) <= tolerance:
        _refuse(network, own, ours, labels, logits, tolerance, rule)
    if rule is TOKENS and abs(_in_place(logits, labels) - ours) <= 4 * tolerance:
        # Such logits give nearly the same loss both ways. A model that shifts never looks at the first label.
        first = torch.full_like(labels, IGNORED)
        first[:, 0] = labels[:, 0].clamp(min=0)
        own = _losses(network, inputs, first, rule)[0] or 0.0
        if not (math.isnan(own) or abs(own) <= tolerance):
            _refuse(network, own, 0.0, first, logits, tolerance, rule)


def _losses(
    network: nn.Module, inputs: dict[str, Any], labels: Tensor, rule: ItemRule
) -> tuple[float | None, float, Tensor]:
    """The model's own loss less its router loss, hfkd's cross-entropy, and the logits that both are of."""
    call = Call.of(network)
    try:
        output = call.output(network, {k: v for k, v in inputs.items() if k != "labels"}, labels=labels)
    except Exception as error:  # such as a subclass from whose name transformers does not guess the loss
        raise _NoLoss(type(bare(network)).__name__, error) from error
    logits, own, added = logits_of(output), getattr(output, "loss", None), call.added_loss(output)
    items = rule.of({"labels": labels}, logits, logits)
    ours = cross_entropy(items.student.logits, items.labels).mean().item()
    if not isinstance(own, Tensor):
        return None, ours, logits
    return own.float().mean().item() - (0.0 if added is None else added.item()), ours, logits


def _refuse(
    network: nn.Module, own: float, ours: float, labels: Tensor, logits: Tensor, tolerance: float, rule: ItemRule
) -> None:
    name = type(bare(network)).__name__
    said = f"the loss of {name} itself on two rows is {own:.4f}, and the cross-entropy that hfkd trains on {ours:.4f}"
    if rule is TOKENS and abs(_in_place(logits, labels) - own) <= tolerance:
        raise ValueError(
            f"{said}: the model predicts each label in its own place, and hfkd shifts the labels by one; use a causal "
            "language model that shifts its labels"
        )
    raise ValueError(
        f"{said}: the model computes something else, or adds a term that hfkd would leave out; switch that off in its "
        "config, or wrap the model in an nn.Module that returns its logits, to train on the cross-entropy alone"
    )


def _in_place(logits: Tensor, labels: Tensor) -> float:
    """The cross-entropy of logits [B, L, C] with labels [B, L] that are not shifted."""
    known = labels != IGNORED
    return cross_entropy(logits[known], labels[known]).mean().item()


def _labels(network: nn.Module, inputs: Mapping[str, Any], rule: ItemRule) -> Tensor:
    """The batch's own labels; where they will not do, such as are surely valid: the tokens themselves, or classes."""
    given = inputs.get("labels")
    if rule is not TOKENS:
        if given is not None and given.ndim == 1 and not given.is_floating_point():
            return given.long()
        config: Any = bare(network).config
        rows = len(next(v for v in inputs.values() if isinstance(v, Tensor)))
        return torch.arange(rows, device=next(network.parameters()).device) % config.num_labels
    if given is not None and rule.count(given):
        return given.long()
    tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
    return tokens if mask is None or mask.shape != tokens.shape else tokens.masked_fill(mask == 0, IGNORED)


def few_tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first tokens of each row, where all that goes along with the tokens is known."""
    tokens = batch.get("input_ids")
    others = [v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim > 1 and k not in ALONG_TOKENS]
    if tokens is None or others or any(k.startswith("cu_seq_lens") for k in batch):
        return dict(batch)
    return {k: v[:, :PROBED_TOKENS].contiguous() if k in ALONG_TOKENS and v.ndim == 2 else v for k, v in batch.items()}


def _made_up_tokens(network: nn.Module) -> dict[str, Tensor]:
    """A batch where no rows are to be had: tokens alone, of which any language model has enough."""
    device = next(network.parameters()).device
    embeddings: Any = bare(network).get_input_embeddings()  # type: ignore[operator]
    tokens = torch.arange(2 * PROBED_TOKENS, device=device) % embeddings.num_embeddings
    return {"input_ids": tokens.view(2, -1)}


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards its modes, buffers and problem type, and the random state, are as before."""
    modes = [(module, module.training) for module in network.modules()]
    config = getattr(bare(network), "config", None)
    problem = getattr(config, "problem_type", None)  # which a classifier's own loss writes into its config
    kept = KeptBuffers()
    kept.keep(network)
    try:
        with kept_random_state():
            network.eval()
            yield
    finally:
        for module, mode in modes:  # each its own: frozen batch norms may be kept in eval
            module.training = mode
        kept.restore(network)
        if config is not None:
            config.problem_type = problem
