"""Warns of a teacher whose sounds were prepared in another way than the student's."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AutoFeatureExtractor, SequenceFeatureExtractor

from hfkd.models.calling import bare

logger = logging.getLogger(__name__)

# What determines the values of features, by its name in feature extractors.
PREPARING = (
    *("sampling_rate", "do_normalize", "mean", "std", "feature_size", "num_mel_bins", "n_fft", "hop_length"),
    *("do_ceptral_normalize", "normalize_means", "normalize_vars"),
)


def warn_of_other_sounds(processing_class: Any, teachers: Sequence[nn.Module]) -> None:
    """Warn of a teacher whose stored feature extractor has other settings than the student's, `processing_class`.

    Every network gets what the student's makes: WavLM's large models, for example, take normalised waves, its base
    models raw ones.
    """
    mine = getattr(processing_class, "feature_extractor", processing_class)
    if not isinstance(mine, SequenceFeatureExtractor):
        return
    for teacher in teachers:
        its = _stored(teacher)
        ours, theirs = ({} if one is None else one.to_dict() for one in (mine, its))
        other = [name for name in PREPARING if name in ours and name in theirs and ours[name] != theirs[name]]
        if other:
            logger.warning(
                "The teacher, a %s, was trained on sounds with %s, and gets them as the student's feature extractor "
                "makes them, with %s: its logits may be worse. Choose networks that agree, or wrap the teacher in an "
                "nn.Module that converts its inputs.",
                type(bare(teacher)).__name__,
                *(", ".join(f"{name}={made[name]}" for name in other) for made in (theirs, ours)),
            )


def _stored(teacher: nn.Module) -> Any:
    """The feature extractor beside a network's weights, or in the Hub's cache; None without one that can be read."""
    name = getattr(getattr(bare(teacher), "config", None), "name_or_path", "")
    if not name:
        return None
    try:
        return AutoFeatureExtractor.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever an unknown kind of feature extractor raises
        logger.info("The feature extractor of %s cannot be read here (%s)", name, error)
        return None
