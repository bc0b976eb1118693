"""Generates answers to test sets, scores them and writes the results."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.evaluation.generation import TextGenerator
from hfkd.evaluation.metrics.rouge_l import TOKENIZERS
from hfkd.evaluation.resume import read_scores, with_earlier, write_scores
from hfkd.evaluation.scoring import Scores, score_rows, summary
from hfkd.evaluation.tables import markdown_table
from hfkd.utils import formats
from hfkd.utils.files import write_atomically
from hfkd.utils.json_file import json_lines
from hfkd.utils.launch import processes

logger = logging.getLogger(__name__)

SEEDS = (10, 20, 30, 40, 50)


def evaluate_sets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Dataset],
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = SEEDS,
    weights: str | None = None,
    rouge_tokenizer: str = "rouge_score",
    **settings: Any,
) -> dict[str, Scores]:
    """Answer every set (columns `prompt`, `references`) for each seed; returns `score`'s result on all processes.

    Each set's scores include the `settings` of generation: `TextGenerator`'s, and `weights`, which identifies the state
    of the model; and a hash of the `references`, which tells whether two students have answered the same rows. The main
    process writes these files atomically: `<set>-seed<seed>.jsonl` with every prompt, answer, references and scores,
    `scores.json`, and the table `scores.md`; the latter two keep the other sets of calls with this `output_dir`.
    `settings` are `TextGenerator`'s; `rouge_tokenizer` is `RougeL`'s tokenizer, recorded in the
    settings if it is not the published one. Raises ValueError for unsuitable settings, seeds or columns before anything
    is generated.
    """
    if rouge_tokenizer not in TOKENIZERS:
        raise ValueError(f"rouge_tokenizer={rouge_tokenizer!r}: pass one of {list(TOKENIZERS)}")
    check_seeds(seeds)
    for name, rows in sets.items():
        if not {"prompt", "references"} <= set(rows.column_names) or len(rows) == 0:
            raise ValueError(
                f"set {name!r} has {len(rows)} rows with columns {rows.column_names}: it needs rows "
                "with prompt and references"
            )
        if not all(rows["references"]):
            raise ValueError(
                f"set {name!r} has rows without a reference: add at least one to each, or remove these rows"
            )
    generator, folder = TextGenerator(model, tokenizer, **settings), Path(output_dir).expanduser()
    read_scores(folder)  # raises before anything is generated
    used = generator.settings | ({} if weights is None else {"weights": weights})
    used |= {} if rouge_tokenizer == "rouge_score" else {"rouge_tokenizer": rouge_tokenizer}
    used = formats.with_version(used, formats.SCORES)  # scores of another one are said to be other ones
    scores = {}
    for name, rows in sets.items():
        by_seed = {
            seed: _one_seed(generator, rows, seed, folder / f"{name}-seed{seed}.jsonl", rouge_tokenizer)
            for seed in seeds
        }
        scores[name] = summary(by_seed) | {"settings": used, "references": _hash(rows["references"][:])}
        mean = scores[name]["rougeL"]
        logger.info("%s: ROUGE-L %.2f over %d seeds, tokens of %s.", name, mean, len(seeds), rouge_tokenizer)
    if processes().is_main_process:
        kept = with_earlier(scores, read_scores(folder))  # with those of calls that have ended meanwhile
        write_scores(folder, kept)
        write_atomically(folder / "scores.md", markdown_table(kept).encode())
    return scores


def _hash(references: Sequence[Sequence[str]]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(references).encode())


def check_seeds(seeds: Sequence[int], name: str = "seeds") -> None:
    """Raise ValueError unless there are seeds, each once and 0 or more."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{name}={tuple(seeds)}: pass at least one seed, each once, and none below 0")


def _one_seed(generator: TextGenerator, rows: Dataset, seed: int, path: Path, rouge_tokenizer: str) -> Scores:
    prompts, references = rows["prompt"][:], rows["references"][:]
    texts = generator(prompts, seed)
    mine = []
    if processes().is_main_process:  # only once, since scoring is the slow part for small models
        mine = [score_rows(texts, references, rouge_tokenizer)]
        write_atomically(path, json_lines(_rows(prompts, texts, references, mine[0])))
    return gather_object(mine)[0]


def _rows(
    prompts: list[str], texts: list[str], references: list[list[str]], scores: Scores
) -> Iterator[dict[str, Any]]:
    columns = {
        "index": range(len(texts)),
        "prompt": prompts,
        "generation": texts,
        "references": references,
        "rougeL": scores["rougeL_per_example"],
        "exact_match": scores["exact_match_per_example"],
    }
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
