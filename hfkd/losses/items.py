"""Items: what a loss sees, whatever its network classifies.

N items, B batch rows, L length, C classes or vocabulary, V vocabulary.
An item is one thing that is classified: an image, a target token, a (row, label) pair. A sample is what carries one
learning value, an image, a sequence, or where sequences are packed a document: `sample[n]` says which. Tasks make them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.functional import upcast
from hfkd.losses.groups import GroupOutputs
from hfkd.losses.outputs import Outputs
from hfkd.utils.devices import send
from hfkd.utils.targets import IGNORED, HostTargets, Targets
from hfkd.utils.token_groups import Groups


@dataclass(frozen=True)
class Items:
    """N items with what student and teacher said about them.

    labels: [N] class ids, or [N, C] when MixUp or CutMix mixed them; None for rows without, which teach all the same. A
    row of a classifier's may lack its own: -100. Where items are groups of tokens (`group_items`), those of the
    student's own tokens.
    labelled: how many items have a label; None: all, or none (`labels`).
    sample: [N] ints below `num_samples`.
    progress: epochs done so far, fractional; warm-ups and schedules read it. None on a stream of unknown length.
    teachers: where there are several, each of them; `teacher` is then their mean logits.
    views: how often each image is there. A view is an item and a sample of its own: with V views of B images, N = V B,
    and items v B to (v + 1) B are view v. Their losses add up: the loss is divided by the number of images.
    own_sample: every item is a sample of its own, as images are, so that a mean over a sample's items is no work.
    rest: what the student adds to the cross-entropy in its own loss, one number for the batch: a router loss.
    rest_name: what the log calls that.
    rest_has_ce: it is the student's whole own loss, with the cross-entropy in it, which is then not added again.
    row: the row of the batch that each item is in [N], below `num_rows`; None where a sample is a row.
    share: 1 / the items of its sample [N], where a loss is a mean over samples of means over items, and is divided by
    the step's samples: items that are known after the forward only (proposals), or lengths that are not to count.
    index: the row of the dataset that each sample is [S], where the batch says so. seed, step: of the run, and the
    optimizer steps taken; what is random is drawn from these three, so that it is the same on any number of ranks.
    mask: which positions of the batch's rows are no padding [B, L], for features of tokens; None: all are.
    tokens: how many labels there are, where they are not one an item.
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
    tokens: int | None = None
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.own_sample and self.num_samples != len(self):
            raise ValueError(f"own_sample=True with {len(self)} items in {self.num_samples} samples: set it to False")

    def __len__(self) -> int:
        return self.sample.shape[0]

    @property
    def num_labels(self) -> Tensor | int:
        """How many cross-entropies there are."""
        if self.labelled is not None:
            return self.labelled
        return len(self) if self.tokens is None else self.tokens

    @property
    def rows(self) -> tuple[Tensor, int]:
        """The row of the batch that each item is in [N], and how many rows it has."""
        return (self.sample, self.num_samples) if self.row is None else (self.row, self.num_rows)

    def with_fixed_teacher(self) -> "Items":
        """These items, whose teacher gets no gradient."""
        return replace(self, teacher=self.teacher.detach(), teachers=tuple(one.detach() for one in self.teachers))

    def view(self, v: int) -> "Items":
        """The items of view `v`, each a sample of its own still."""
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
        """[N] -> [N]: the mean over the items of each item's sample. For images the value itself, bit for bit."""
        return values if self.own_sample else self.sample_means(values)[self.sample]

    def sample_means(self, values: Tensor) -> Tensor:
        """[N, ...] -> [num_samples, ...]: the mean over each sample's items, 0 for a sample without any."""
        sums = values.new_zeros(self.num_samples, *values.shape[1:]).index_add(0, self.sample, values)
        counts = values.new_zeros(self.num_samples).index_add(0, self.sample, values.new_ones(len(self)))
        return sums / counts.clamp(min=1).view(-1, *[1] * (values.ndim - 1))

    @property
    def samples_with_items(self) -> Tensor | int:
        """How many samples have an item: nothing is read back from a device."""
        if self.own_sample:
            return self.num_samples
        return torch.zeros(self.num_samples, device=self.sample.device).index_fill(0, self.sample, 1.0).sum()

    def log_probabilities(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Of teacher and student at each item's temperature [N]: [N, C] each, float32 or wider.

        All that a divergence needs. It asks here, not the logits: a stored teacher knows its likeliest classes only.
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
    """One item an image: logits [B, C], labels [B] or [B, C] -> N = B items. Several teachers' logits are [K, B, C].

    Logits [V B, C] are those of V views of each image, view by view; each view has the image's label. An image of label
    -100 has none: it counts in the objective, and not in the cross-entropy. complete: each is known to have
    one, so that they need not be counted.
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
) -> Items:
    """One item an unmasked target token: logits [B, L, V], labels [B, L].

    Position i predicts the label at i + shift; labels of -100 are no items. The sample is the row of the batch, or the
    document, where the row's `position_ids` start again. Several teachers' logits are [K, B, L, V].
    """
    same_classes(student_logits.shape[-1], teacher_logits.shape[-1])
    teacher_logits, teachers = _several(teacher_logits, student_logits.ndim)
    tokens = Targets(labels, host_targets, shift, position_ids=position_ids, attention_mask=attention_mask)
    return Items(
        Outputs(tokens.pick(student_logits)),
        Outputs(tokens.pick(teacher_logits)),
        tokens.labels,
        sample=tokens.sample,
        num_samples=tokens.num_samples,
        progress=progress,
        teachers=tuple(Outputs(tokens.pick(one.logits)) for one in teachers),
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
    """One item a region of an image: logits [N, C], labels [N], `counts` [B] of them in each image, one by one.

    A sample is an image, and each counts alike (`share`). Several teachers' logits are [K, N, C].
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
    """One item a target token, of which both outputs are known. ValueError where the teacher's are of other tokens."""
    if teacher.size != len(targets):
        raise ValueError(f"{len(targets)} target tokens, but the teacher's outputs are of {teacher.size}")
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
    """One item a group of tokens that two networks' tokenizers end at the same place (`hfkd.utils.token_groups`).

    Both outputs are of their own target tokens, `labels` of student and teacher. The cross-entropy is of all of the
    student's, in a group or not. A sample is a row, the mean over its groups (`share`), and each row with any counts
    alike. same: entries of both vocabularies that are equal. late: logits are read one position after (TRL's default).
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
    """N items before there are logits: what a chunked loss starts from.

    student, teacher: of tokens what the output heads read, [N, H_s] and [N, H_t]; of pixels each network's maps.
    lengths: how many items each sample has, one sample after the other, where the host knows. row, rest, rest_name: see
    `Items`. beside: the same items with what was kept of the networks' inner layers, and without logits.
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

    def __len__(self) -> int:
        return self.sample.shape[0]


def token_hidden(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    *,
    progress: float | None = 0.0,
    **known: Any,
) -> HiddenItems:
    """`token_items` one layer earlier: the last hidden states [B, L, H] that the output heads read.

    `known`: the batch's `host_targets`, or else its `position_ids` and `attention_mask`.
    """
    tokens = Targets(labels, known.pop("host_targets", None), **known)
    student, teacher = tokens.pick(student_hidden), tokens.pick(teacher_hidden)
    samples = tokens.sample, tokens.num_samples
    return HiddenItems(student, teacher, tokens.labels, *samples, progress, tokens.lengths, tokens.row)


def epoch_of(progress: float | None) -> int:
    """The epoch, from 1, that has begun after `progress` epochs. ValueError where nobody knows how long one is."""
    if progress is None:
        raise ValueError("this slot counts epochs, and the training stream does not say how many rows it has")
    return int(progress) + 1


def _views(logits: Tensor, labels: Tensor) -> int:
    if not len(labels):
        return 1
    views, rest = divmod(len(logits), len(labels))
    if rest or not views:
        raise ValueError(f"logits of {len(logits)} rows for {len(labels)} labels: each label needs a row for each view")
    return views


def _several(teacher_logits: Tensor, ndim: int) -> tuple[Tensor, tuple[Outputs, ...]]:
    """The mean logits of several teachers, and each one's; one teacher's as they are."""
    if teacher_logits.ndim == ndim:
        return teacher_logits, ()
    return teacher_logits.mean(0), tuple(map(Outputs, teacher_logits))


def same_classes(student: int, teacher: int) -> None:
    """Raise ValueError unless both networks give the same number of classes."""
    if student != teacher:
        raise ValueError(
            f"the student gives {student} classes and the teacher {teacher}: "
            "logit distillation compares them one by one; give the student the teacher's number of labels"
        )
