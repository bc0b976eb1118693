"""Items: the input of the loss, for all tasks.

N items, B batch rows, L length, C classes or vocabulary, V vocabulary.
An item is one prediction: for an image, a target token, or a (row, label) pair. A sample is the unit of per-sample
weights and temperatures: an image, a sequence, or a document in packed sequences. `sample[n]` is the sample of item n.
Tasks create the items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.functional import sums_by, upcast
from hfkd.losses.groups import GroupOutputs
from hfkd.losses.outputs import Outputs
from hfkd.utils.devices import send
from hfkd.utils.targets import IGNORED, HostTargets, Targets
from hfkd.utils.token_groups import Groups


@dataclass(frozen=True)
class Items:
    """N items with the outputs of student and teacher.

    labels: [N] class ids, or [N, C] if MixUp or CutMix mixed them; None for unlabelled rows, which are distilled all
    the same. -100 is the label of a single unlabelled row of a classifier. Where items are groups of tokens
    (`group_items`), the labels of the student's own tokens.
    labelled: the number of items that have a label; None: all, or none if `labels` is None.
    sample: [N] ints below `num_samples`.
    progress: the fractional number of epochs done so far, for warm-ups and schedules; None on a stream of unknown
    length.
    teachers: with several teachers, the outputs of each; `teacher` then holds their mean logits.
    views: the number of views of each image. Each view is an item and a sample: with V views of B images, N = V B, and
    items v B to (v + 1) B are view v. The losses of an image's views are added: the loss is divided by the number of
    images.
    own_sample: every item is its own sample, as with images, so that no means over a sample's items are needed.
    rest: what the student adds to the cross-entropy in its own loss, such as a router loss; a scalar for the batch.
    rest_name: the name of `rest` in the log.
    rest_has_ce: `rest` is the student's whole loss including the cross-entropy, which is then not added again.
    row: the batch row of each item [N], below `num_rows`; None if each sample is a row.
    share: 1 / (number of items of the sample) [N], if the loss is a mean over samples of means over items and is
    divided by the step's number of samples: for items that are known only after the forward pass (proposals), or if the
    length of a sample should not matter.
    index: the dataset row of each sample [S], if the rows have a column `index`; -1 for a document without items. Of an
    item it is `index[sample]`. seed, step: the seed of the run and the number of optimizer steps taken. Random choices
    are functions of these three, so that they are the same for any number of ranks.
    mask: the positions of the batch that are not padding [B, L], for features of tokens; None: no padding.
    decoder_mask: the same for the decoder of an encoder-decoder (`Task.decoder_mask`).
    tokens: the number of labels, if it differs from the number of items.
    """

    student: Outputs
    teacher: Outputs
    labels: Tensor | None
    sample: Tensor
    num_samples: int
    progress: float | None = 0.0
    teachers: tuple[Outputs, ...] = ()
    views: int = 1
    own_sample: bool = False
    rest: Tensor | None = None
    rest_name: str = "router_loss"
    rest_has_ce: bool = False
    row: Tensor | None = None
    num_rows: int = 0
    share: Tensor | None = None
    index: Tensor | None = None
    seed: int = 0
    step: int = 0
    mask: Tensor | None = None
    decoder_mask: Tensor | None = None
    tokens: int | None = None
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.own_sample and self.num_samples != len(self):
            raise ValueError(f"own_sample=True with {len(self)} items in {self.num_samples} samples: set it to False")

    def __len__(self) -> int:
        return self.sample.shape[0]

    @property
    def num_labels(self) -> Tensor | int:
        """The number of labels, each with one cross-entropy."""
        if self.labelled is not None:
            return self.labelled
        return len(self) if self.tokens is None else self.tokens

    @property
    def rows(self) -> tuple[Tensor, int]:
        """The batch row of each item [N], and the number of rows."""
        return (self.sample, self.num_samples) if self.row is None else (self.row, self.num_rows)

    def with_fixed_teacher(self) -> "Items":
        """The items with detached teacher outputs."""
        return replace(self, teacher=self.teacher.detach(), teachers=tuple(one.detach() for one in self.teachers))

    def view(self, v: int) -> "Items":
        """The items of view `v`, each of them its own sample."""
        if self.views == 1:
            return self
        count = len(self) // self.views
        rows = slice(v * count, (v + 1) * count)
        student, teacher, *teachers = (one.rows(rows) for one in (self.student, self.teacher, *self.teachers))
        sample = torch.arange(count, device=self.sample.device)
        several, labels = tuple(teachers), None if self.labels is None else self.labels[rows]
        return Items(
            student,
            teacher,
            labels,
            sample,
            count,
            self.progress,
            several,
            own_sample=True,
            index=None if self.index is None else self.index[rows],
            seed=self.seed,
            step=self.step,
            labelled=None if self.labelled is None else self.labelled // self.views,
        )

    def mean_over_sample(self, values: Tensor) -> Tensor:
        """[N] -> [N]: the mean over the items of each item's sample; for images the values themselves, unchanged."""
        return values if self.own_sample else self.sample_means(values)[self.sample]

    def sample_means(self, values: Tensor) -> Tensor:
        """[N, ...] -> [num_samples, ...]: the mean over each sample's items, 0 for a sample without items.

        In float32 or wider: sums and counts in bfloat16 would stop at 256."""
        values = upcast(values)
        sums = sums_by(self.sample, self.num_samples, values)
        counts = sums_by(self.sample, self.num_samples, values.new_ones(len(self)))
        return (sums / counts.clamp(min=1).view(-1, *[1] * (values.ndim - 1))).to(values.dtype)

    @property
    def samples_with_items(self) -> Tensor | int:
        """The number of samples that have items, without a device synchronisation."""
        if self.own_sample:
            return self.num_samples
        return torch.zeros(self.num_samples, device=self.sample.device).index_fill(0, self.sample, 1.0).sum()

    def log_probabilities(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher and student at each item's temperature [N]: [N, C] each, in float32 or wider.

        Divergences use this method instead of the logits, because a cached teacher has only its most likely classes.
        """
        return self.teacher.log_probabilities(self.student, temperature)


def image_items(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    progress: float | None = 0.0,
    complete: bool = False,
) -> Items:
    """One item per image: logits [B, C], labels [B] or [B, C] -> N = B items. Several teachers' logits are [K, B, C].

    Logits [V B, C] are those of V views of each image, view by view; each view has the image's label. An image with the
    label -100 is unlabelled: it counts in the objective, but not in the cross-entropy. complete: all images are known
    to be labelled, so that labels need not be counted.
    """
    same_classes(student_logits.shape[-1], teacher_logits.shape[-1])
    teacher_logits, teachers = _several(teacher_logits, student_logits.ndim)
    views = _views(student_logits, labels)
    return Items(
        Outputs(student_logits),
        Outputs(teacher_logits),
        labels if views == 1 else torch.cat([labels] * views),
        sample=torch.arange(len(student_logits), device=labels.device),
        num_samples=len(student_logits),
        progress=progress,
        teachers=teachers,
        views=views,
        own_sample=True,
        labelled=None if complete or labels.is_floating_point() else (labels != IGNORED).sum() * views,
    )


def token_items(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    progress: float | None = 0.0,
    host_targets: HostTargets | None = None,
    position_ids: Any = None,
    attention_mask: Any = None,
    shift: int = 1,
    of_teacher: Targets | None = None,
) -> Items:
    """One item per target token: logits [B, L, V], labels [B, L].

    Position i predicts the label at i + shift; labels of -100 are ignored. A sample is a row of the batch, or in packed
    rows a document, which begins where `position_ids` restart. Several teachers' logits are [K, B, L, V].
    of_teacher: the same target tokens where the teacher predicts them, if it reads other rows.
    """
    same_classes(student_logits.shape[-1], teacher_logits.shape[-1])
    teacher_logits, teachers = _several(teacher_logits, student_logits.ndim)
    tokens = Targets(labels, host_targets, shift, position_ids=position_ids, attention_mask=attention_mask)
    mine = tokens.pick(student_logits)
    there = tokens if of_teacher is None else of_teacher
    its = mine if teacher_logits is student_logits else there.pick(teacher_logits)  # one network's: no second copy
    return Items(
        Outputs(mine),
        Outputs(its),
        tokens.labels,
        sample=tokens.sample,
        num_samples=tokens.num_samples,
        progress=progress,
        teachers=tuple(Outputs(there.pick(one.logits)) for one in teachers),
        row=tokens.row,
        num_rows=len(labels),
    )


def region_items(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    counts: Sequence[int],
    *,
    progress: float | None = 0.0,
) -> Items:
    """One item per region of an image: logits [N, C], labels [N], with `counts` [B] consecutive regions for each image.

    A sample is an image, and all images count the same (`share`). Several teachers' logits are [K, N, C].
    """
    same_classes(student_logits.shape[-1], teacher_logits.shape[-1])
    teacher_logits, teachers = _several(teacher_logits, student_logits.ndim)
    device = student_logits.device
    each = torch.tensor(list(counts), device=device)
    sample = torch.arange(len(counts), device=device).repeat_interleave(each, output_size=sum(counts))
    return Items(
        Outputs(student_logits),
        Outputs(teacher_logits),
        labels,
        sample,
        num_samples=len(counts),
        progress=progress,
        teachers=teachers,
        share=each.to(upcast(student_logits).dtype).reciprocal()[sample],
    )


def target_items(student: Outputs, teacher: Outputs, targets: Targets, progress: float | None = 0.0) -> Items:
    """One item per target token, from outputs that are already known. Raises ValueError if their numbers differ."""
    if teacher.size != len(targets):
        raise ValueError(
            f"the teacher has outputs for {teacher.size} tokens, but the labels have {len(targets)} target tokens: "
            "give both networks the same rows"
        )
    samples = targets.sample, targets.num_samples
    return Items(student, teacher, targets.labels, *samples, progress, row=targets.row, num_rows=targets.shape[0])


def group_items(
    student: Outputs,
    teacher: Outputs,
    groups: Groups,
    labels: tuple[Tensor, Tensor],
    *,
    same: tuple[Tensor | None, Tensor | None] = (None, None),
    late: bool = False,
    progress: float | None = 0.0,
) -> Items:
    """One item per group of tokens that end at the same place in both tokenizations (`hfkd.utils.token_groups`).

    Each network's outputs are those of its own target tokens, with its own `labels`. The cross-entropy includes all
    target tokens of the student, in a group or not. A sample is a row; its loss is the mean over its groups (`share`),
    and all rows with groups count the same. same: the entries that are equal in both vocabularies. late: logits are
    read one position later (TRL's default).
    """
    device = student.logits.device
    sample = send(groups.row, device)
    sizes = torch.bincount(groups.row, minlength=groups.num_rows).clamp(min=1)
    share = send(sizes.to(upcast(student.logits).dtype).reciprocal()[groups.row], device)
    parts = zip((student, teacher), labels, (groups.student, groups.teacher), same, strict=True)
    mine, its = (GroupOutputs(one.logits, one.kept, own, grouped, equal, late) for one, own, grouped, equal in parts)
    tokens = len(labels[0])
    return Items(mine, its, labels[0], sample, groups.num_rows, progress, share=share, tokens=tokens)


@dataclass(frozen=True)
class HiddenItems:
    """N items before the logits are computed: the input of a chunked loss.

    student, teacher: for tokens, the inputs of the output heads [N, H_s] and [N, H_t]; for pixels, the maps of each
    network. lengths: the number of items of each sample in order, if known on the CPU. row, rest, rest_name, index,
    seed, step: see `Items`. beside: the same items with the captured features of inner layers, without logits.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    sample: Tensor
    num_samples: int
    progress: float | None = 0.0
    lengths: tuple[int, ...] | None = None
    row: Tensor | None = None
    rest: Tensor | None = None
    rest_name: str = "router_loss"
    beside: Items | None = None
    index: Tensor | None = None
    seed: int = 0
    step: int = 0

    def __len__(self) -> int:
        return self.sample.shape[0]


def token_hidden(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    *,
    progress: float | None = 0.0,
    of_teacher: Targets | None = None,
    **known: Any,
) -> HiddenItems:
    """`token_items` before the output heads: from the last hidden states [B, L, H].

    `known`: the batch's `host_targets`, or its `position_ids` and `attention_mask`.
    """
    tokens = Targets(labels, known.pop("host_targets", None), **known)
    student = tokens.pick(student_hidden)
    teacher = (tokens if of_teacher is None else of_teacher).pick(teacher_hidden)
    samples = tokens.sample, tokens.num_samples
    return HiddenItems(student, teacher, tokens.labels, *samples, progress, tokens.lengths, tokens.row)


def index_of_samples(index: Any, items: Any) -> Tensor | None:
    """The dataset row of each sample [S] from that of each row of the batch [B]; None without one."""
    if not isinstance(index, Tensor) or index.ndim != 1 or not len(index):
        return None
    row = getattr(items, "row", None)
    if row is None or items.num_samples == len(index):  # a row, or a view of one
        times, rest = divmod(items.num_samples, len(index))
        return None if rest else index if times == 1 else index.repeat(times)
    return index.new_full((items.num_samples,), -1).scatter(0, items.sample, index[row])  # documents


def epoch_of(progress: float | None) -> int:
    """The current epoch, counted from 1, after `progress` epochs. Raises ValueError if their length is unknown."""
    if progress is None:
        raise ValueError(
            "this slot has a warm-up in epochs, but the training set is a stream of unknown length: set "
            "warmup_epochs=0, or pass a map-style dataset"
        )
    return int(progress) + 1


def warmed_up(progress: float | None, epochs: float) -> float:
    """min(e / epochs, 1), e = 1 in the first epoch; 1 without a warm-up (`epochs=0`)."""
    return min(epoch_of(progress) / epochs, 1.0) if epochs else 1.0


def _views(logits: Tensor, labels: Tensor) -> int:
    if not len(labels):
        return 1
    views, rest = divmod(len(logits), len(labels))
    if rest or not views:
        raise ValueError(
            f"{len(logits)} rows of logits do not fit {len(labels)} labels: each label needs one row per view"
        )
    return views


def _several(teacher_logits: Tensor, ndim: int) -> tuple[Tensor, tuple[Outputs, ...]]:
    """The mean logits of several teachers and the outputs of each; for one teacher, its logits and no others."""
    if teacher_logits.ndim == ndim:
        return teacher_logits, ()
    return teacher_logits.mean(0), tuple(map(Outputs, teacher_logits))


def same_classes(student: int, teacher: int) -> None:
    """Raise ValueError unless both networks give the same number of classes."""
    if student != teacher:
        raise ValueError(
            f"the student gives {student} classes and the teacher {teacher}, but logit distillation compares them one "
            "by one: give the student the teacher's number of labels"
        )
