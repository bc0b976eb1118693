"""Next-token prediction for a student and a teacher with different tokenizers.

n, m target tokens of student and teacher, N groups of them.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfkd.data.teacher_columns import TEACHER_IDS, TEACHER_PROMPT, columns_of, teachers_batch
from hfkd.data.token_bytes import equal_entries, token_bytes
from hfkd.data.two_collate import NO_TOKENS, TwoTokenCollator, groups_of
from hfkd.data.two_rows import COLUMNS
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.losses.base import requirements_of
from hfkd.losses.chunked_groups import HiddenGroups
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items, group_items
from hfkd.losses.outputs import Outputs
from hfkd.losses.slot_values import is_ours
from hfkd.models.calling import INPUTS, Call
from hfkd.models.positions import said_limit
from hfkd.models.vocabulary import contradict, vocabulary_size
from hfkd.tasks.base import Batch, Collate, Task
from hfkd.tasks.causal_lm import LONGEST, CausalLM, are_texts, of_tokens
from hfkd.utils.devices import send
from hfkd.utils.token_groups import Pairing

logger = logging.getLogger(__name__)

UNSEEN = (
    "the rows have {0}, which only the teacher reads, but the columns of the training rows did not name it when the "
    "trainer was built, so that the teacher would read the student's tokens: pass rows with column_names (a stream has "
    "them by datasets.IterableDataset.from_generator(..., features=...)), or leave {0} out"
)
Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]


class TwoTokenizerLM(CausalLM):
    """`CausalLM` whose items for distillation are groups of tokens (`hfkd.utils.token_groups`); a sample is a row.

    The loss is the mean over a row's groups, then over the rows that have any. The cross-entropy, in training and
    evaluation, is that of the student's own tokens.
    """

    item = "a group of tokens"
    by_share = True
    own_rows = True
    own_tokens = True
    name = "causal_lm"

    def __init__(self, tokenizers: Tokenizers, pairing: Pairing, student: nn.Module, teacher: nn.Module) -> None:
        self.tokenizers, self.pairing = tokenizers, pairing
        self.spelled = token_bytes(tokenizers[0]), token_bytes(tokenizers[1])
        self.limits = said_limit(student), said_limit(teacher)
        self.unread = _unread(student, teacher)
        sizes = [
            vocabulary_size(network) or len(one) for network, one in zip((student, teacher), tokenizers, strict=True)
        ]
        found = equal_entries(*tokenizers, (sizes[0], sizes[1]))
        self.same = torch.tensor(found[0], dtype=torch.long), torch.tensor(found[1], dtype=torch.long)
        self._same_on = {self.same[0].device: self.same}
        logger.info(
            "Student and teacher have different tokenizers (%d and %d tokens, %d with equal bytes in both): "
            "their tokens are matched by %s.",
            *map(len, tokenizers), len(found[0]), pairing.by,
        )  # fmt: skip

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return self.ready(super().collator(call, processing_class, columns))

    def ready(self, collate: Collate) -> Collate:
        if isinstance(collate, TwoTokenCollator):
            collate.spelled, collate.unread = self.spelled, self.unread
            return collate
        own = of_tokens(collate, "the teacher has its own tokenizer")
        held = {"spelled": self.spelled, "unread": self.unread}
        return TwoTokenCollator.around(own, self.tokenizers[1], self.pairing, **held)

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        if not are_texts(rows, f"{tokenize_for_both.__module__}.{tokenize_for_both.__name__}"):
            return rows
        longest = [min(limit or LONGEST, LONGEST) for limit in self.limits]
        logger.warning(
            "The rows are texts and are tokenised with hfkd.data.two_tokenizers.tokenize_for_both(max_length=%d, "
            "teacher_max_length=%d): call it yourself to change the lengths.",
            *longest,
        )
        return tokenize_for_both(
            rows,
            *self.tokenizers,
            max_length=longest[0],
            max_prompt_length=longest[0] - 1,
            teacher_max_length=longest[1],
        )

    def count_samples(self, batch: Batch) -> Tensor | int:
        return groups_of(batch).rows_with_any if self.teacher_reads(batch) else super().count_samples(batch)

    def teacher_reads(self, batch: Batch) -> bool:
        return TEACHER_IDS in batch

    def for_teacher(self, batch: Batch) -> dict[str, Any]:
        return teachers_batch(batch, NO_TOKENS)

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        """Items of groups for a batch with the teacher's tokens; for other batches items of one network's tokens."""
        if not self.teacher_reads(batch):
            return super().items(batch, student, teacher, progress)
        mine, its = self.targets(batch), self.targets(self.for_teacher(batch))
        return self.of_targets(batch, Outputs(mine.pick(student)), Outputs(its.pick(teacher)), progress)

    def of_targets(self, batch: Batch, student: Outputs, teacher: Outputs, progress: float | None = 0.0) -> Items:
        """The items from both networks' outputs at their own target tokens [n], [m]."""
        targets, device = (self.targets(batch), self.targets(self.for_teacher(batch))), student.logits.device
        labels = targets[0].labels, targets[1].labels
        how: dict[str, Any] = {"same": self._sent(device), "late": self.pairing.late, "progress": progress}
        return group_items(student, teacher, groups_of(batch), labels, **how)

    def _sent(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`same` on a device, copied once."""
        if device not in self._same_on:
            self._same_on[device] = send(self.same[0], device), send(self.same[1], device)
        return self._same_on[device]

    def hidden_groups(
        self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0
    ) -> HiddenGroups:
        """`of_targets` for the inputs of the output heads at these tokens: [n, H] and [m, H]."""
        labels = self.targets(batch).labels, self.targets(self.for_teacher(batch)).labels
        return HiddenGroups(student, teacher, labels, groups_of(batch), self._sent(student.device), progress)

    def teacher_items(self, batch: Batch, teacher: Tensor) -> Items:
        """The groups as in training, with the teacher's outputs for both networks."""
        its = self.targets(self.for_teacher(batch))
        outputs = Outputs(its.pick(teacher))
        groups = groups_of(batch)
        return group_items(outputs, outputs, groups.of_teacher, (its.labels, its.labels))

    def each_item(
        self, batch: Batch, student: Tensor, teacher: Tensor, values_of: Callable[[Items], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, int]]:
        """As in `CausalLM`, for the tokens of one network."""
        items = super().items(batch, student, teacher)
        return values_of(items), items.rows


def _unread(*networks: nn.Module) -> frozenset[str]:
    """Names of inputs other than text that the networks take."""
    calls = [Call.of(network) for network in networks]
    found = {name for name in INPUTS if name != "input_ids" and any(call.takes(name) for call in calls)}
    return frozenset(found | ({"image", "images"} if "pixel_values" in found else set()))


def across_tokenizers(
    task: Task, loss: DistillationLoss, args: Any, tokenizers: tuple[Any, Any], networks: tuple[Any, Sequence[Any]]
) -> Task:
    """`task`, or the task for two tokenizers if these are known to differ and the objective supports it.

    Raises ValueError for settings that are not supported with two tokenizers.
    """
    pairings = [getattr(term.objective, "pairing", None) for term in loss.terms]
    known = [pairing for pairing in pairings if isinstance(pairing, Pairing)]
    differ = type(task) is CausalLM and bool(loss.kd_weight) and different(*tokenizers)
    if not differ:
        if any(pairing.late for pairing in known):
            raise ValueError(
                f"{loss.objective!r}: position='at' is an option for different tokenizers of student and teacher, "
                "which are not known here (pass processing_class and teacher_processing_class): leave it out"
            )
        return task
    if len(known) < len(pairings):
        return task  # refused later, when the tokenizers are compared
    _refuse(loss, args, known, networks[1])
    return TwoTokenizerLM(tokenizers, known[0], networks[0], networks[1][0])


def different(student: Any, teacher: Any) -> bool:
    """Whether both tokenizers are known and differ, even if one only extends the other."""
    known = all(isinstance(one, PreTrainedTokenizerBase) for one in (student, teacher))
    return known and student.get_vocab() != teacher.get_vocab()


def at_odds(student: Any, teacher: Any) -> bool:
    """Whether both tokenizers are known and contradict each other, so that one network cannot read the other's rows."""
    return different(student, teacher) and contradict(student, teacher)


def teachers_tokens(task: Task, tokenizers: tuple[Any, Any], rows: Any) -> dict[str, str]:
    """Columns that only the teacher reads, which no row may have that comes later, each with the reason.

    tokenizers: the student's and the teacher's, if known. Raises ValueError if `rows` are known to be of two
    tokenizers, of which one is missing.
    """
    if type(task) is not CausalLM or at_odds(*tokenizers):
        return {}
    sides = zip(("processing_class", "teacher_processing_class"), tokenizers, strict=True)
    unknown = [name for name, one in sides if not isinstance(one, PreTrainedTokenizerBase)]
    if unknown and COLUMNS[2] in columns_of(rows):
        raise ValueError(
            f"the rows have {TEACHER_IDS}, the tokens of a teacher's own tokenizer, but {' and '.join(unknown)} is "
            "missing, so that the teacher would read the student's tokens: pass both tokenizers, or leave these "
            "columns out"
        )
    both = f"; for a teacher with another tokenizer pass {' and '.join(unknown)}" if unknown else ""
    return {name: UNSEEN.format(name) + both for name in (TEACHER_IDS, TEACHER_PROMPT)}


def _refuse(loss: DistillationLoss, args: Any, pairings: Sequence[Any], teachers: Sequence[Any]) -> None:
    """Raise ValueError for settings that are not supported with two tokenizers."""
    written = "on_policy" if args.on_policy else "seq_kd"
    unmet = {
        "the teacher must run on its own tokens": (
            f"teacher_cache_dir={args.teacher_cache_dir}" if args.teacher_cache_dir else "a stored teacher",
            not teachers or args.teacher_cache_dir,
        ),
        "each teacher would have its own groups": ("several teachers", len(teachers) > 1),
        "the KL between two vocabularies is not defined": ("evaluate_kl=True", args.evaluate_kl),
        "generated responses would be tokens of one network only": (f"{written}={getattr(args, written)}", args.writes),
        "its terms would match tokens in different ways": (repr(loss.objective), len(set(pairings)) > 1),
    }
    for why, (what, asked) in unmet.items():
        if asked:
            raise ValueError(
                f"{what} is not supported if student and teacher have different tokenizers: {why}; leave it out, "
                "or use a student with the teacher's tokenizer"
            )
    for slot in (loss.temperature, loss.weighting):
        if is_ours(slot) and not requirements_of(slot).signals:
            raise ValueError(
                f"{slot!r} reads logits, but with different tokenizers of student and teacher an item is a group "
                "of tokens, for which only energy and entropy are available: choose a slot that uses these, such "
                "as energy or entropy"
            )
