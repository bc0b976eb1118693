"""A common way to call networks: Hugging Face models by keyword, plain nn.Modules by position."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Unpack, get_args, get_origin

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model
from transformers.utils import ModelOutput, TransformersKwargs

from hfkd.models.positions import positions_of_padding

# Batch entries for hfkd itself: they are passed to a network only if its forward names them.
OWN_KEYS = frozenset(
    {"index", "view", "host_targets", "host_rows", "length", "prompt_length", "teacher_length", "which_teacher"}
    | {"groups", "token_groups", "byte_ends", "response_bytes"}
)
OWN_PREFIX = "teacher_"  # those for the teacher alone too
# The inputs of networks: tokens, images, audio as waveforms or spectrograms.
INPUTS = {"input_ids", "pixel_values", "input_values", "input_features"}
# Calls for classes of networks that do not take a plain tensor, registered by the modules that support them.
CALLS: dict[type[nn.Module], Callable[[], "Call"]] = {}
EVERYTHING = None  # value of `Call.others`: any name except hfkd's own
# Outputs for each image or sound instead of each row, which batches without any lack; Trainer joins equal outputs only.
OF_MEDIA = frozenset({"image_hidden_states", "vision_hidden_states", "video_hidden_states", "audio_hidden_states"})
# Attributes in which transformers models keep the factor of the router loss in their own loss.
ROUTER_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


@dataclass(frozen=True)
class Call:
    """How to call a network. Built from the bare network, and used on any wrapper of it (DDP, compile, autocast).

    keywords: the inputs that its forward names; None for a network that is called with the images only, by position.
    others: the inputs that it takes by **kwargs besides; `EVERYTHING`, or the names that a transformers model declares.
    router_weight: the factor of `.aux_loss` in a mixture-of-experts model's own loss.
    shifts_labels: an encoder-decoder that makes its decoder inputs from the labels [B, L] if it is given no others.
    """

    keywords: frozenset[str] | None
    others: frozenset[str] | None = frozenset()
    router_weight: float | None = None
    shifts_labels: bool = False
    writes: bool = False  # an encoder-decoder with a language modelling head: it needs labels or decoder inputs
    unlabelled: int | None = None  # the label of no class, for models whose auxiliary head only enters their own loss
    hands_on: bool = False  # forward(*args, **kwargs): images are passed by position, other inputs by name
    first_position: int = 0  # of a row, for a decoder that counts from another number than 0 (RoBERTa)
    texts_alone: bool = False  # the rows are taken for texts; images that come in a batch are passed all the same

    @classmethod
    def of(cls, model: nn.Module) -> "Call":
        network = bare(model)
        special = next((made for kind, made in CALLS.items() if isinstance(network, kind)), None)
        if special is not None:
            return special()
        parameters = inspect.signature(network.forward).parameters.values()
        names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        rest = [p for p in parameters if p.kind == p.VAR_KEYWORD]
        others = _taken_by_kwargs(network, rest[0].annotation) if rest else frozenset()
        positional = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
        for_teacher = any(name.startswith(OWN_PREFIX) for name in names)
        keyed = names & INPUTS or for_teacher or (rest and not positional)
        shifts = isinstance(network, PreTrainedModel) and network.config.is_encoder_decoder and "labels" in names
        writes = shifts and output_head(network) is not None
        keywords = names - {"labels"} if keyed else None
        more = router_weight(network), bool(shifts), bool(writes), _auxiliary(network), bool(rest and not names)
        return cls(keywords, others, *more, _first_position(network))

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of `inputs`; entries that the network does not take (index, labels, ...) are not passed."""
        return logits_of(self.output(model, inputs))

    def output(self, model: nn.Module, inputs: Mapping[str, Any], **more: Any) -> Any:
        """The network's output for `inputs`, called with the additional arguments `more`."""
        if self.keywords is not None:
            self._refuse_nothing_to_decode(model, {*inputs, *more})
            return model(**self.taken(inputs), **more)
        if "pixel_values" not in inputs and self.hands_on:
            return model(**{k: v for k, v in inputs.items() if self._may_be_taken(k)}, **more)
        if "pixel_values" not in inputs:
            raise ValueError(
                f"{type(model).__name__}.forward has none of the arguments {sorted(INPUTS)}, and the batch no "
                f"pixel_values to pass by position, but {sorted(inputs)}: rename its argument and the batch's entry to "
                f"one of these, or to {OWN_PREFIX}... for what the teacher alone is given"
            )
        return model(inputs["pixel_values"], **more)

    def hidden_output(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """A language model's output with its hidden states, and the logits of the last position only."""
        return self.output(model, inputs, output_hidden_states=True, logits_to_keep=1)

    def hidden(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The last hidden states [B, L, H] of a language model."""
        return self.hidden_output(model, inputs).hidden_states[-1]

    def added_loss(self, output: Any) -> Tensor | None:
        """What the network adds to the cross-entropy in its own loss: the router loss of a mixture of experts.

        Raises ValueError if there is a router loss whose factor is not known.
        """
        loss = getattr(output, "aux_loss", None)
        if not isinstance(loss, Tensor):
            return None
        if self.router_weight is None:
            raise ValueError(
                f"the network returns a router loss (aux_loss), but has none of {list(ROUTER_WEIGHTS)}, the factor of "
                "this loss: set router_aux_loss_coef on the network, or output_router_logits=False in its config"
            )
        return self.router_weight * loss.mean()  # DataParallel gathers one number of each copy

    def for_text(self) -> "Call":
        """This call for rows of text only, for a network that also takes images (Gemma 3)."""
        return replace(self, texts_alone=self.keywords is not None and "input_ids" in self.keywords)

    @property
    def takes_images(self) -> bool:
        """Whether the rows are images, or have some."""
        return self.takes("pixel_values") and not self.texts_alone

    def takes(self, name: str) -> bool:
        """Whether an input of this name is passed to the network."""
        if self.keywords is None:
            return name == "pixel_values" or (self.hands_on and self._may_be_taken(name))
        return name in self.keywords or self._may_be_taken(name)

    def _may_be_taken(self, name: str) -> bool:
        """Whether **kwargs takes an input of this name, which must not be labels or one of hfkd's own."""
        if name == "labels" or name in OWN_KEYS or name.startswith(OWN_PREFIX):
            return False
        return self.others is EVERYTHING or name in self.others

    def taken(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that the network takes, by name."""
        # The cache of keys and values is only useful for generation; by default each layer would fill it.
        whole_sequences = {"use_cache": False} if "use_cache" in (self.keywords or ()) else {}
        named = {k: v for k, v in inputs.items() if self.takes(k)}
        if self.first_position and isinstance(named.get("position_ids"), Tensor):
            named["position_ids"] = named["position_ids"] + self.first_position  # ours count from 0
        return named | self._decoded(inputs) | whole_sequences

    def _refuse_nothing_to_decode(self, model: nn.Module, given: set[str]) -> None:
        if self.writes and given.isdisjoint({"labels", "decoder_input_ids", "decoder_inputs_embeds"}):
            raise ValueError(
                f"{type(bare(model)).__name__} computes logits for a target text, but the batch has neither labels "
                "nor decoder_input_ids: give the rows one of them, or use the model's generate() to write text"
            )

    def _decoded(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The labels, for a decoder without other inputs (BART would then decode its encoder's input)."""
        labels, given = inputs.get("labels"), {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
        if not self.shifts_labels or given or not isinstance(labels, Tensor):
            return {}
        return {"labels": labels} if labels.ndim == 2 and not labels.is_floating_point() else {}

    def without_labels(self, inputs: Mapping[str, Any], labels: Iterable[str]) -> dict[str, Any]:
        """The batch without additional `labels`, except those that forward names."""
        others = {*labels} - {"labels"} - (self.keywords or frozenset())
        return {name: value for name, value in inputs.items() if name not in others}

    def left_out(self, names: Iterable[str], labels: Iterable[str] = ()) -> list[str]:
        """The `names` of a batch's inputs that the network does not take, apart from labels and hfkd's own entries."""
        known = OWN_KEYS | {"labels", "pixel_values", *labels}
        return sorted(n for n in names if not (self.takes(n) or n in known or n.startswith(OWN_PREFIX)))


@contextmanager
def main_input_named(model: Any, call: Call) -> Iterator[None]:
    """Within the context, a plain network has a `main_input_name` as transformers models do, which Trainer reads."""
    missing = call.takes_images and not hasattr(model, "main_input_name")
    if missing:
        vars(model)["main_input_name"] = "pixel_values"
    try:
        yield
    finally:
        if missing:
            vars(model).pop("main_input_name", None)


def bare(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DDP and PEFT, whose forward signatures do not name the inputs; the owner of a
    bound call (`without_autocast`)."""
    model = getattr(model, "__self__", model)
    return unwrap_peft_model(extract_model_from_parallel(model, keep_torch_compile=False))


def router_weight(network: nn.Module) -> float | None:
    """The factor of a mixture-of-experts model's router loss in its own loss; None if there is none."""
    owners: list[Any] = [network]
    if isinstance(network, PreTrainedModel):
        owners.append(network.config.get_text_config())
    named = (getattr(owner, name, None) for owner in owners for name in ROUTER_WEIGHTS)
    return next((float(value) for value in named if isinstance(value, (int, float))), None)


def _first_position(network: nn.Module) -> int:
    """See `Call.first_position`. Rows of other models than decoders have the positions that the network makes."""
    decodes = isinstance(network, PreTrainedModel) and getattr(network.config, "is_decoder", False)
    return positions_of_padding(network) if decodes else 0


def _taken_by_kwargs(network: nn.Module, annotation: Any) -> frozenset[str] | None:
    """The names that **kwargs takes. Transformers models declare them, and may crash on any other name."""
    if get_origin(annotation) is Unpack:
        return frozenset(get_args(annotation)[0].__annotations__)
    if isinstance(network, PreTrainedModel) and type(network).__module__.startswith("transformers."):
        return frozenset(TransformersKwargs.__annotations__)
    return EVERYTHING


def by_name(output: Any) -> Any:
    """A network's output in the form that Trainer expects: a mapping whose values are the predictions."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        return {f"output_{number}": value for number, value in enumerate(_without_loss(output))}
    if not isinstance(output, dict):
        return {"logits": logits_of(output)}
    # Some networks return the cache of their base model, which is not told to leave it out (Gemma 3 as a classifier),
    # or all that a part of them returns (LLaVA's `image_outputs`).
    left_out = {name for name, value in output.items() if name in OF_MEDIA or isinstance(value, (Cache, ModelOutput))}
    return {name: value for name, value in output.items() if name not in left_out} if left_out else output


def logits_first(named: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of `by_name` with the logits before all others, for metrics that read the first output."""
    logits = logits_of(named) if "logits" in named or "out" in named else None
    return {k: v for k, v in named.items() if v is logits} | {k: v for k, v in named.items() if v is not logits}


def gathered(outputs: Any) -> Any:
    """A network's outputs as Trainer's `prediction_step` returns them, without None and plain numbers.

    A dict of a network's own may have these (`"loss": None` without labels, `"hidden_states": None`). Trainer ends in
    an error where it gathers them.
    """
    if not isinstance(outputs, tuple):
        return outputs
    kept = tuple(value for value in outputs if isinstance(value, (Tensor, tuple, list, Mapping)))
    return kept[0] if len(kept) == 1 else kept


def logits_of(output: Any) -> Tensor:
    """A network's logits: its output if that is a tensor, otherwise its `.logits`, "logits" or "out".

    In a tuple they are the first element, or follow the loss, as in models that are given labels. Raises ValueError for
    an output without logits.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits", output.get("out"))  # torchvision's segmentation models
    elif logits is None and isinstance(output, (tuple, list)) and (given := _without_loss(output)):
        logits = given[0]
    if not isinstance(logits, Tensor) or logits.ndim == 0:
        raise ValueError(
            f"the model returned a {type(output).__name__} without logits: return a tensor, an object or dict with "
            "logits, or a tuple that begins with them; from transformers, use a model with a head (AutoModelFor...)"
        )
    return logits


def _without_loss(output: Sequence[Any]) -> list[Any]:
    """A tuple's elements without the loss at its start, or what networks return in its place when they get no labels:
    None, or 0."""
    given = [value for value in output if value is not None and not (isinstance(value, (int, float)) and value == 0)]
    return given[1:] if len(given) > 1 and loss_of(given) is not None else given


def class_dim(logits: Tensor) -> int:
    """The class dimension of a network's logits: the last, for maps [B, C, H, W] the second."""
    return 1 if logits.ndim == 4 else -1


def unlabelled_index(network: nn.Module) -> int:
    """The label that a segmentation model of transformers ignores."""
    config = getattr(bare(network), "config", None)
    names = ("loss_ignore_index", "semantic_loss_ignore_index")
    return int(next((getattr(config, name) for name in names if hasattr(config, name)), 255))


def _auxiliary(network: nn.Module) -> int | None:
    """See `Call.unlabelled`."""
    auxiliary = isinstance(network, PreTrainedModel) and getattr(network, "auxiliary_head", None) is not None
    return unlabelled_index(network) if auxiliary else None


def loss_of(output: Any) -> Tensor | None:
    """The loss that a network has computed itself: `.loss`, "loss", or a scalar at the start of a tuple."""
    loss = getattr(output, "loss", None)
    if isinstance(output, dict):
        loss = output.get("loss")
    elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor) and output[0].ndim == 0:
        loss = output[0]
    return loss if isinstance(loss, Tensor) else None


def output_head(network: nn.Module) -> Any:
    """The module from hidden states to logits, of a network or its wrapper; None if there is none."""
    bare: Any = extract_model_from_parallel(network, keep_torch_compile=False)
    return bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
