"""Generates a dataset of a language model's responses to prompts, for sequence-level KD."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.data.first_rows import at_most
from hfkd.data.instructions import UNFINISHED, to_prompt_response
from hfkd.data.prompts import Prompts, read_prompts
from hfkd.data.stored_templates import warn_of_other_template
from hfkd.data.text_arguments import TextDataArguments
from hfkd.data.text_collate import padding_id
from hfkd.experiments.earlier_run import warn_of_template
from hfkd.experiments.response_folder import ResponseFolder, Row
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.models.positions import shortest_limit
from hfkd.models.writing import end_ids
from hfkd.tasks.padding import refuse_padded_prompts
from hfkd.teachers.fingerprint import configuration, weights_fingerprint
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.training.on_policy.writing import ResponseWriter
from hfkd.utils.argument_types import Count, NotNegative, Share, fitting
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.launch import processes, refuse_unshared

logger = logging.getLogger(__name__)

PART = 64  # prompts per part, which is kept when a run is interrupted
SAMPLING = ("num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
FILTERS = ("keep_unfinished", "keep_repeated")
WHY = {
    "ended_at_once": "ended at once",
    "empty": "without text",
    "unfinished": "not ended within max_new_tokens",
    "repeated": "repeated another of the same prompt",
}


@dataclass
class ResponseArguments:
    """Prompts, sampling of responses, and which responses are kept."""

    dataset_name: str = flag("databricks/databricks-dolly-15k", "Hub id, local folder or JSON-lines file.")
    max_prompt_length: int = flag(256, "Maximum number of tokens of a prompt; longer prompts are dropped.")
    chat_template: bool = flag(False, "Format prompts with the tokenizer's chat template.")
    max_rows: int | None = flag(None, "Use only the first training rows, for a quick test.")
    num_samples: int = flag(1, "Number of responses to each prompt.")
    max_new_tokens: int = flag(256, "Maximum number of tokens of a response.")
    temperature: float = flag(1.0, "Sampling temperature; 0: greedy decoding.")
    top_k: int = flag(0, "Sample from the k most probable tokens; 0: all tokens.")
    top_p: float = flag(1.0, "Sample from the most probable tokens with this total probability.")
    seed: int = flag(42, "Random seed, combined with the row and number of a response.")
    keep_unfinished: bool = flag(False, "Keep responses that reach max_new_tokens without an end of sequence.")
    keep_repeated: bool = flag(False, "Keep responses that equal an earlier one to the same prompt.")
    batch_size: int = flag(32, "Responses per batch on each process.")
    output_dir: str = flag("runs/responses", "Folder for the dataset.")
    disable_tqdm: bool = flag(False, "No progress bar.")

    def __post_init__(self) -> None:
        at_least_one(self, "max_prompt_length", "max_rows", "num_samples", "max_new_tokens", "batch_size")
        kinds: dict[str, Any] = {"temperature": NotNegative, "top_k": NotNegative, "top_p": Share}
        for name, kind in (kinds | {"num_samples": Count}).items():
            fitting(type(self).__name__, name, getattr(self, name), kind)
        if self.top_p == 0:
            raise ValueError("top_p=0 leaves no token to sample: pass a probability above 0; 1 keeps all tokens")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature=0 is greedy decoding, so that num_samples={self.num_samples} responses to a prompt "
                "would be identical: raise the temperature, or leave num_samples out"
            )

    @property
    def templated(self) -> bool:
        """Whether prompts are in a chat template: by this flag, or as responses to them were generated so before."""
        return self._data.templated

    @property
    def _data(self) -> TextDataArguments:
        limit = self.max_prompt_length
        return TextDataArguments(self.dataset_name, max_prompt_length=limit, chat_template=self.chat_template)

    def splits(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The splits of the dataset, for Dolly as in the literature, read as in the training recipes."""
        splits = self._data.splits(tokenizer)
        if "train" not in splits:
            raise ValueError(f"{self.dataset_name} has the splits {sorted(splits)}: one must be named train")
        if self.templated and not self.chat_template:
            warn_of_other_template(self.dataset_name, splits["train"][0]["prompt"], tokenizer)
        return splits | {"train": at_most(splits["train"], self.max_rows)}


def generate_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: ResponseArguments, name: str = ""
) -> dict[str, int]:
    """Generate responses of `model` to the training prompts of `args.dataset_name`; returns counts of kept and dropped
    ones.

    `args.output_dir` then has `train.jsonl` (`prompt`, `response`, `row`, `sample`; and `unfinished` with
    `keep_unfinished`), the dataset's other splits as `prompt` and `response`, and `responses.json` with settings and
    counts. A response is seeded by (seed, row, sample), so that it depends neither on the number of processes nor on
    interruptions; a repeated call keeps existing responses, and writes the other splits again if they have changed.
    Responses that end at once or have no text are dropped, and by the filters also unfinished and repeated ones. With a
    chat template a response includes the token that ended it, if that is not the tokenizer's end of sequence, as
    responses of `messages` do. Raises ValueError, before anything is written, for a folder with other responses, if all
    prompts are too long, if the model has too few positions, and for another split without responses; and at the end if
    no response is left.
    """
    state = processes()
    with state.main_process_first():
        splits = args.splits(tokenizer)
        how = args.max_prompt_length, args.chat_template, args.templated
        prompts = read_prompts(splits["train"], tokenizer, *how)
        others = {n: _pairs(rows, n, tokenizer, args.chat_template) for n, rows in splits.items() if n != "train"}
    warn_of_template(name, args.templated, "answers prompts")
    _refuse_positions(model, prompts, args.max_new_tokens)
    if args.batch_size > 1:
        refuse_padded_prompts(model, padding_id(tokenizer), "set batch_size=1")
    filters = {one: getattr(args, one) for one in FILTERS}
    folder = ResponseFolder(args.output_dir, _settings(model, prompts, args, name), filters)
    with state.main_process_first():
        seen = state.is_main_process or folder.begun
        done = seen and folder.begin()
    refuse_unshared(args.output_dir, seen)
    if done:
        logger.info("%s already has all responses", args.output_dir)
        if state.is_main_process:
            folder.renew(others)
        state.wait_for_everyone()
        return dict(folder.counts)
    _write(model.to(state.device), tokenizer, args, prompts, folder)
    state.wait_for_everyone()
    kept, counts = _kept(prompts, _all(folder, len(prompts)), args)
    logger.info("%s", said(counts))
    if not kept:
        raise ValueError(
            f"no response is left: {said(counts)}. Check that the model is trained on prompts of this format, or "
            "pass keep_unfinished to keep responses without an end; existing responses are not generated again"
        )
    state.wait_for_everyone()  # all have read the parts, which are deleted now
    if state.is_main_process:
        folder.finish({**others, "train": kept}, counts)
    state.wait_for_everyone()
    return counts


def said(counts: Mapping[str, int]) -> str:
    """A sentence with the counts."""
    dropped = ", ".join(f"{counts[name]} {words}" for name, words in WHY.items() if counts.get(name))
    long = f"; {counts['long_prompts']} prompts were too long" if counts["long_prompts"] else ""
    return f"{counts['kept']} of {counts['written']} responses are kept ({dropped or 'none dropped'}){long}"


def _refuse_positions(model: PreTrainedModel, prompts: Prompts, new: int) -> None:
    limit = shortest_limit([model])
    longest = max(range(len(prompts)), key=lambda i: len(prompts.ids[i]))
    length = len(prompts.ids[longest])
    if limit is not None and length + new > limit:
        fewer = f"lower max_new_tokens to {limit - length} or less, or " if length < limit else ""
        raise ValueError(
            f"the prompt of row {prompts.rows[longest]} has {length} tokens, so that with max_new_tokens={new} "
            f"the row may take {length + new} positions, but the model has {limit}: {fewer}"
            "lower max_prompt_length"
        )


def _settings(model: PreTrainedModel, prompts: Prompts, args: ResponseArguments, name: str) -> dict[str, Any]:
    """The settings that determine the responses; the hash of the prompts' tokens also depends on the tokenizer."""
    live = FrozenTeacher(model).unfreeze()
    tokens = json.dumps([prompts.rows, prompts.ids, prompts.texts]).encode()
    hashes = {"weights": weights_fingerprint(live), "prompts": xxhash.xxh3_128_hexdigest(tokens)}
    given = {one: getattr(args, one) for one in SAMPLING}
    shown = {"model": name, "dataset": args.dataset_name, "chat_template": args.templated}
    return {**shown, **hashes, **given, "config": configuration(live)}


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: ResponseArguments,
    prompts: Prompts,
    folder: ResponseFolder,
) -> None:
    """Generate the missing parts, distributed over the ranks."""
    state = processes()
    numbers = range(-(-len(prompts) // PART))
    missing = [n for n in numbers if n % state.num_processes == state.process_index and folder.part(n) is None]
    settings = OnPolicyArguments(
        on_policy_max_new_tokens=args.max_new_tokens,
        on_policy_temperature=args.temperature,
        on_policy_top_k=args.top_k,
        on_policy_top_p=args.top_p,
        on_policy_batch_size=args.batch_size,
    )
    writer, ends = ResponseWriter(settings, tokenizer, args.seed, len(tokenizer)), end_ids(model, tokenizer)
    places = {n: range(n * PART, min((n + 1) * PART, len(prompts))) for n in missing}
    total = args.num_samples * sum(map(len, places.values()))
    hidden = args.disable_tqdm or not state.is_main_process
    with tqdm(total=total, desc="Writing responses", unit="response", disable=hidden) as bar:
        for number, some in places.items():
            ids, rows = [prompts.ids[i] for i in some], [prompts.rows[i] for i in some]
            found: list[Row] = []
            for sample in range(args.num_samples):
                written = writer(model, ids, rows, sample)
                for row, prompt, tokens in zip(rows, ids, written, strict=True):
                    found.append({"row": row, "sample": sample} | _response(tokenizer, prompt, tokens, ends))
                bar.update(len(rows))
            folder.write_part(number, found)


def _response(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: Sequence[int], ends: set[int]
) -> dict[str, Any]:
    """The response's text, without special tokens; decoded with the prompt to keep a leading space.

    end: the token that ended it, if it is not the tokenizer's end of sequence, which training adds: of a turn (Gemma).
    """
    ended = bool(tokens) and tokens[-1] in ends
    answer = list(tokens[:-1] if ended else tokens)
    settings: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = (str(tokenizer.decode(ids, **settings)) for ids in (list(prompt), [*prompt, *answer]))
    text = whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(answer, **settings))
    end = str(tokenizer.decode(list(tokens[-1:]))) if ended and tokens[-1] != tokenizer.eos_token_id else ""
    return {"response": text, "tokens": len(answer), "ended": ended, "end": end}


def _all(folder: ResponseFolder, count: int) -> Iterable[Row]:
    for number in range(-(-count // PART)):
        rows = folder.part(number)
        assert rows is not None
        yield from rows


def _kept(prompts: Prompts, written: Iterable[Row], args: ResponseArguments) -> tuple[list[Row], dict[str, int]]:
    """The kept rows, ordered by row and sample, and the counts."""
    texts = dict(zip(prompts.rows, prompts.texts, strict=True))
    templated = args.templated
    counts: Counter[str] = Counter(dict.fromkeys(("written", "kept", *WHY), 0))
    seen: dict[int, set[str]] = {}
    kept: list[Row] = []
    for one in sorted(written, key=lambda row: (row["row"], row["sample"])):
        row, text = one["row"], one["response"]
        why = _why_dropped(one, text in seen.get(row, ()), args)
        counts["written"] += 1
        counts[why or "kept"] += 1
        if why is None:
            seen.setdefault(row, set()).add(text)
            whole = text + one.get("end", "") if templated else text  # as in the turns of the template
            cut = {UNFINISHED: not one["ended"]} if args.keep_unfinished else {}
            kept.append({"prompt": texts[row], "response": whole, "row": row, "sample": one["sample"]} | cut)
    return kept, dict(counts) | {"prompts": len(prompts), "long_prompts": prompts.dropped}


def _why_dropped(one: Row, repeated: bool, args: ResponseArguments) -> str | None:
    if one["ended"] and not one["tokens"]:
        return "ended_at_once"
    if not one["response"].strip():
        return "empty"
    if not one["ended"] and not args.keep_unfinished:
        return "unfinished"
    return "repeated" if repeated and not args.keep_repeated else None


def _pairs(rows: Dataset, split: str, tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> list[Row]:
    try:
        return list(to_prompt_response(rows, tokenizer, chat_template))
    except ValueError as error:
        raise ValueError(f"the split {split!r}, which is copied with its own responses: {error}") from error
