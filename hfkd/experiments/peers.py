"""Saves each peer of a mutual-learning run, with its scores."""

from pathlib import Path
from typing import cast

from hfkd.models import Peers
from hfkd.trainer import DistillationTrainer
from hfkd.utils.json_file import write_json


def save_peers(trainer: DistillationTrainer) -> list[dict[str, float]]:
    """Evaluate and save each peer to `peer_0`, `peer_1`, ... in the run's folder. Call it on every rank."""
    peers, scores = cast(Peers, trainer.model), []
    for k, peer in enumerate(peers.peers):
        peers.scored = k
        scores.append(trainer.evaluate(metric_key_prefix=f"eval_peer_{k}"))
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir or ".") / f"peer_{k}"
            peer.save_pretrained(folder)  # type: ignore[operator]
            write_json(folder / "scores.json", scores[-1])
    peers.scored = 0
    return scores
