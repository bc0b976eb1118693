"""Saves each peer of a mutual-learning run, with its scores."""

from pathlib import Path
from typing import Any, cast

from hfkd.models import Peers
from hfkd.models.processors import timm_wrappers
from hfkd.trainer import DistillationTrainer
from hfkd.training.validation.recorded_inputs import of_evaluation
from hfkd.utils.json_file import write_json


def save_peers(trainer: DistillationTrainer) -> list[dict[str, float]]:
    """Evaluate and save each peer to `peer_0`, `peer_1`, ... in the run's folder. Call it on every rank."""
    peers, scores, processor = cast(Peers, trainer.model), [], _processor(trainer)
    for k, peer in enumerate(peers.peers):
        peers.scored = k
        scores.append(trainer.evaluate(metric_key_prefix=f"eval_peer_{k}"))
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir or ".") / f"peer_{k}"
            peer.save_pretrained(folder)  # type: ignore[operator]
            if processor is not None and not timm_wrappers(peer):  # whose config says how images are prepared
                processor.save_pretrained(folder)
            write_json(folder / "scores.json", scores[-1])
    peers.scored = 0
    return scores


def _processor(trainer: DistillationTrainer) -> Any:
    """What prepares the peers' images: what is saved with a student, which beside a timm model may be nothing."""
    prepared = None if trainer.saved_processor is not None else of_evaluation(trainer)
    return trainer.saved_processor if prepared is None else prepared.processor
