"""Checks, on two rows before training, that hfkd's loss equals the loss that the network itself computes.

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
from hfkd.losses.slot_values import is_ours
from hfkd.models.calling import INPUTS, Call, bare, logits_of, loss_of
from hfkd.tasks.base import Task
from hfkd.tasks.tokens import PROBED_TOKENS, PerToken
from hfkd.utils.buffers import KeptBuffers
from hfkd.utils.devices import device_of
from hfkd.utils.kept_attributes import kept_attributes
from hfkd.utils.modes import in_eval_mode
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)


class _NoLoss(Exception):
    """The network cannot compute a loss; arguments: its name and the error."""


@torch.no_grad()
def compare_own_loss(network: nn.Module, batch: Mapping[str, Any] | None, task: Task, is_student: bool = False) -> None:
    """Raise ValueError if a model and `task` compute different losses for `batch`, on the model's device.

    The task's cross-entropy, plus the router loss if there is one, must equal the model's own `.loss`: both come from
    the same logits, so that a difference is one of the task, such as whether labels are shifted by one. The model runs
    in eval mode; its modes, buffers and config and torch's random state are restored. A model that computes no loss is
    accepted. Without a `batch`, made-up tokens are used. A module that is no model of transformers is compared if it is
    the student, which Trainer would train on its own loss: with class weights, say.
    """
    network = extract_model_from_parallel(network, keep_torch_compile=False)
    inside = bare(network)
    if batch is not None:
        with untouched(network):
            task.check_own_loss(inside, batch)
    parameter = next(network.parameters(), None)
    names = Call.of(network).keywords
    if parameter is None or parameter.is_meta or names is None:
        return
    if "labels" not in inspect.signature(inside.forward).parameters:
        return
    if not isinstance(inside, PreTrainedModel):
        # Not of maps, as the module's index for no label is not known, and not by a user's task, whose items may need
        # more than labels.
        if is_student and batch is not None and not task.by_map and is_ours(task):
            _compare_plain(network, batch, task)
        return
    if batch is None:
        batch = _made_up_tokens(network)
    with untouched(network), task.as_networks_have_it(inside) as own:
        _compare(network, own.probe(batch), own)
        if isinstance(own, PerToken) and own.shift:
            _refuse_reading_ahead(network)


def _compare_plain(network: nn.Module, batch: Mapping[str, Any], task: Task) -> None:
    """Compare the loss of a module that is no model of transformers, unless these rows have no labels for it."""
    with untouched(network), task.as_networks_have_it(network) as own:
        try:
            inputs = own.probe(dict(batch))
            own.sure_labels(network, inputs)
        except AttributeError:  # made-up labels are drawn from those that a config counts
            return
        _compare(network, inputs, own)


def _compare(network: nn.Module, inputs: dict[str, Any], task: Task) -> None:
    labels = task.sure_labels(network, inputs)
    try:
        own, ours, logits = _losses(network, inputs, labels, task)
    except _NoLoss as error:
        logger.warning("%s cannot compute a loss itself (%s): hfkd's loss is not compared with it.", *error.args)
        return
    if own is None or not math.isfinite(ours):  # non-finite networks are reported elsewhere
        return
    few_bits = logits.dtype in (torch.bfloat16, torch.float16)  # for models that do not compute their loss in float32
    tolerance = (2 * torch.finfo(logits.dtype).eps if few_bits else 1e-4) * max(abs(ours), 1.0)
    if not abs(own - ours) <= tolerance:
        _refuse(network, own, ours, _elsewhere(logits, labels, task), tolerance, task)
    other = _elsewhere(logits, labels, task)
    if other is not None and abs(other - ours) <= 4 * tolerance:
        # The loss is nearly equal with and without shift. A model that shifts ignores the first label.
        first = torch.full_like(labels, IGNORED)
        first[:, 0] = labels[:, 0].clamp(min=0)
        own, ours, logits = _losses(network, inputs, first, task)
        own, ours = (0.0 if x is None or math.isnan(x) else x for x in (own, ours))
        if not abs(own - ours) <= tolerance:
            _refuse(network, own, ours, own, tolerance, task)


def _losses(
    network: nn.Module, inputs: dict[str, Any], labels: Tensor, task: Task
) -> tuple[float | None, float, Tensor]:
    """The model's own loss without its router loss, the task's cross-entropy, and the logits of both."""
    call = Call.of(network)
    try:
        output = call.output(network, {k: v for k, v in inputs.items() if k != "labels"}, labels=labels)
    except Exception as error:  # such as a subclass for whose name transformers finds no loss
        raise _NoLoss(type(bare(network)).__name__, error) from error
    logits, own, added = logits_of(output), loss_of(output), call.added_loss(output)
    if isinstance(task, PerToken) and logits.ndim == 2:  # with labels only theirs: ModernBERT's sparse_prediction
        logits = call(network, inputs)
    task.check_logits(logits)
    items = task.items({"labels": labels}, logits, logits)
    assert items.labels is not None
    ours = cross_entropy(items.student.logits, items.labels).mean().item()
    if own is None:
        return None, ours, logits
    return own.float().mean().item() - (0.0 if added is None else added.item()), ours, logits


def _refuse(network: nn.Module, own: float, ours: float, elsewhere: float | None, tolerance: float, task: Task) -> None:
    name = type(bare(network)).__name__
    said = f"the loss computed by {name} on two rows is {own:.4f}, but the cross-entropy computed by hfkd is {ours:.4f}"
    if isinstance(task, PerToken) and elsewhere is not None and abs(elsewhere - own) <= tolerance:
        does, ours_does = "predicts each label at its own position", "shifts the labels by one"
        if not task.shift:
            does, ours_does = "shifts its labels by one", "predicts each label at its own position"
        raise ValueError(f"{said}: the model {does}, and {task.name} {ours_does}; use a model for {task.name}")
    raise ValueError(
        f"{said}: the model has another loss than {task.name}, or adds a term that hfkd would omit; disable that "
        "term in its config, or wrap the model in an nn.Module that returns only logits, to train on the "
        "cross-entropy alone"
    )


def _refuse_reading_ahead(network: nn.Module) -> None:
    """Raise ValueError if a position attends to the token after it, which it is trained to predict.

    BERT and its relatives do as a causal language model, unless their config says that they are decoders. Networks
    that also take images or audio are not tried on tokens alone.
    """
    call = Call.of(network)
    if any(call.takes(name) for name in INPUTS - {"input_ids"}):
        return
    tokens = _made_up_tokens(network)["input_ids"][:1].repeat(2, 1)
    tokens[1, -1] = tokens[0, 0]  # two rows that differ in their last token
    one, two = call(network, {"input_ids": tokens})[:, :-1].float()
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    if bool((one - two).abs().max() > (0.02 if half else 1e-4) * one.abs().max()):
        raise ValueError(
            f"in {type(bare(network)).__name__} a position attends to the tokens after it, which causal_lm trains it "
            "to predict, so that it would learn to copy them: set is_decoder=True in its config, as in "
            "from_pretrained(..., is_decoder=True), or use a model for masked_lm"
        )


def _elsewhere(logits: Tensor, labels: Tensor, task: Task) -> float | None:
    """The cross-entropy of labels [B, L] with the shift opposite to the task's."""
    if not isinstance(task, PerToken):
        return None
    if not task.shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    known = labels != IGNORED
    return cross_entropy(logits[known], labels[known]).mean().item()


def _made_up_tokens(network: nn.Module) -> dict[str, Tensor]:
    """A batch of arbitrary tokens, valid for any language model, for use without rows."""
    device = device_of(network)
    embeddings: Any = bare(network).get_input_embeddings()  # type: ignore[operator]
    tokens = torch.arange(2 * PROBED_TOKENS, device=device) % embeddings.num_embeddings
    return {"input_ids": tokens.view(2, -1)}


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Context with the network in eval mode; restores its modes, buffers, problem type and what its modules remember.

    The random state too.
    """
    config = getattr(bare(network), "config", None)
    problem = getattr(config, "problem_type", None)  # a classifier writes it into its config when it computes a loss
    kept = KeptBuffers()
    kept.keep(network)
    try:
        with kept_random_state(), kept_attributes(network), in_eval_mode(network):
            yield
    finally:
        kept.restore(network)
        if config is not None:
            config.problem_type = problem
