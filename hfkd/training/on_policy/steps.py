"""Replaces the responses in the micro-batches of an optimizer step by freshly generated ones."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hfkd.data.teacher_columns import WHICH_TEACHER
from hfkd.data.text_collate import TokenCollator
from hfkd.models.positions import shortest_limit
from hfkd.models.writing import can_write
from hfkd.training.given_collator import tokenizer_of_rows
from hfkd.training.host import Host
from hfkd.training.on_policy.prompts import has_several_answers, prompts_of, refuse_long
from hfkd.training.on_policy.record import ResponseStatistics, keep_texts
from hfkd.training.on_policy.schedule import Writer, writer_of
from hfkd.training.on_policy.writing import ResponseWriter
from hfkd.training.on_policy.written_row import WrittenRow

logger = logging.getLogger(__name__)


class WrittenSteps:
    """Creates the batches of each optimizer step, before their items are counted.

    The generating network depends on seed and step (`writer_of`), each response on seed, row and step: the same on any
    number of ranks, in any batch, and in a resumed run. `by_student`: the current step trains on the student's
    responses, whose tokens are not used as labels.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tokenizer = tokenizer_of_rows(host.processing_class, host.data_collator)
        # Behind the teacher's end of turn, which a student's own tokens may not include, it has nothing to teach.
        both = [one for one in (host.model, *host.teacher.networks) if can_write(one)]
        self.write = ResponseWriter(host.args, self.tokenizer, host.args.seed, host.num_classes, both)
        self.statistics = ResponseStatistics(host.accelerator)
        self.limits = shortest_limit([host.model]), shortest_limit(host.teacher.networks)
        self.by_student = False
        self._last: tuple[Any, ...] | None = None
        self._said_several = False

    def __call__(self, batches: Sequence[Mapping[str, Any]], step: int) -> list[Any]:
        """`batches` of optimizer step `step` (from 0), or new batches with the same prompts and generated responses."""
        args = self.host.args
        if not batches:  # Trainer goes on asking where a stream has ended
            return []
        writer = writer_of(step, args.seed, args.on_policy, args.seq_kd)
        self.by_student = writer == "student"
        self.statistics.step(self.by_student)
        self._last = None
        if writer is None:
            return list(batches)
        found = [prompts_of(batch) for batch in batches]
        self._say_several(batches)
        sizes, rows = [len(numbers) for _, numbers in found], [row for _, numbers in found for row in numbers]
        prompts = [prompt for some, _ in found for prompt in some]
        its = [prompt for batch in batches for prompt in self._teachers_prompts(batch)]
        read = prompts if self.by_student or not its else its
        for row, *both in zip(rows, prompts, its or prompts, strict=True):
            for prompt, limit in zip(both, self.limits, strict=True):
                refuse_long(row, len(prompt), args.on_policy_max_new_tokens, limit)
        model = self._network(writer)
        responses = self.write(model, read, rows, step)
        self.statistics.add(responses, self.write.ends(model))
        own: Sequence[list[int] | None] = its or [None] * len(rows)
        made = [WrittenRow(*one) for one in zip(rows, prompts, responses, own, strict=True)]
        if args.log_completions:
            self._last = step + 1, writer, made
        made_batches = self._batches(sizes, made)
        for batch, given in zip(made_batches, batches, strict=True):
            batch |= {WHICH_TEACHER: given[WHICH_TEACHER]} if WHICH_TEACHER in given else {}
        return made_batches

    def _teachers_prompts(self, batch: Mapping[str, Any]) -> list[list[int]]:
        """The prompts of a teacher that reads its own; else none."""
        task = self.host.task
        return prompts_of({**task.for_teacher(batch), "index": batch["index"]})[0] if task.own_rows else []

    def _say_several(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Warn once of rows with several answers, of which one is generated."""
        if self._said_several or not any(map(has_several_answers, batches)):
            return
        self._said_several = True
        logger.warning(
            "Some rows have several answers (labels with other tokens between them, as the turns of a chat): of these "
            "the last one is generated, and alone trained on in such steps. To generate each, make a row of each "
            "answer and of what comes before it."
        )

    def _network(self, writer: Writer) -> Any:
        """The unwrapped student or teacher."""
        if writer == "teacher":
            return self.host.teacher.networks[0]
        return self.host.accelerator.unwrap_model(self.host.model)

    def _batches(self, sizes: list[int], rows: list[WrittenRow]) -> list[dict[str, Any]]:
        collate, device = self.host.task.ready(TokenCollator(self.write.pad)), self.host.args.device
        found, start = [], 0
        for size in sizes:
            batch = collate([row.columns() for row in rows[start : start + size]])
            found.append({name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()})
            start += size
        return found

    def logged(self) -> dict[str, float]:
        """What is logged of the steps since the last time. With `log_completions` keeps the last step's responses."""
        if self._last is not None:
            self._keep(*self._last)
        self._last = None
        return self.statistics.read()

    def _keep(self, step: int, writer: Writer, rows: list[WrittenRow]) -> None:
        texts = [{"row": row.index, "by": writer} | row.texts(self._text) for row in rows]
        keep_texts(self.host.args.output_dir or ".", step, texts, self.host.accelerator)

    def _text(self, tokens: list[int]) -> Any:
        """The text with special tokens; without a tokenizer the token ids."""
        return tokens if self.tokenizer is None else self.tokenizer.decode(tokens)
