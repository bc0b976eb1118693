"""A teacher whose logits are computed once for each view of an image, then read from a file.

B images, V views of each, C classes, M rows of logits.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from hfkd.data.epochs import image_transform
from hfkd.data.he_da import original_images
from hfkd.data.transforms import ImageTransform, unpack_pixels
from hfkd.teachers.agreement import disagreement, everywhere, size_of, tolerance
from hfkd.teachers.base import Teacher
from hfkd.teachers.code import code_hash
from hfkd.teachers.fingerprint import data_fingerprint, teacher_key
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.image_cache.device_store import DeviceStore, fits
from hfkd.teachers.image_cache.quantize import NATURAL, WIDEST, encode
from hfkd.teachers.image_cache.store import LogitStore, file_name
from hfkd.utils.devices import device_of, send

logger = logging.getLogger(__name__)

# Of a normalised pixel: rounding in half precision changes it by up to 0.01, another level of 256 by 0.01 to 0.02.
SAME = 0.05


class CachedTeacher(Teacher):
    """`teacher` for the training images of `dataset`: the same call, but known logits are read from a file.

    A teacher in eval mode has one row of logits for each image and view, and padded crops with flips have a finite
    number of views (CIFAR: 81 · 2), so that `index` and `view` of a row locate its logits. The teacher runs only for
    rows that the file does not have yet, which are then stored; rows with view -1, which are not enumerable
    (RandAugment, CutMix), run every time. The file depends on the teacher's weights and inputs, the rows of `dataset`,
    the set of views, the precision and the type of device, and is shared by all runs with the same ones, even
    simultaneously. It covers only the training images: use the live teacher for others. Images added by HE-DA are not
    stored; the others use the same file as without HE-DA. With `on_device` the rows are kept in device memory too,
    which is the default on a GPU with enough of it (`DeviceStore`); with `ResidentImages` no look-up then waits for the
    GPU.

    The logits differ from the live teacher's by at most 1/65,534 of their row's range, logsumexp by float32 rounding
    (`quantize.encode`), for stored and new rows alike: the first run and later ones train on the same numbers. When the
    file is opened, a few rows are compared with the teacher, and the file is replaced if they differ. An image whose
    energy is very near to a threshold may be on the other side of it. Raises ValueError for a dataset whose views are
    not enumerable or whose images share an index, for a full disk, and for a batch whose images are not the views that
    it names, as after a collator's MixUp (compared in calls 1, 2, 4, 8, ...).
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        dataset: Any,
        cache_dir: str | Path,
        accelerator: Accelerator | None = None,
        on_device: bool | None = None,
    ) -> None:
        dataset = original_images(dataset)
        transform = image_transform(dataset)
        if not isinstance(transform, ImageTransform):
            raise ValueError(
                "the teacher's logits can be stored only for enumerable views: use a dataset of "
                "hfkd.data.load_images with an ImageTransform, or leave teacher_cache_dir out"
            )
        self.teacher, self.num_views = teacher, transform.num_views
        device = device_of(teacher)
        self.views = NumberedViews(dataset, transform)
        file = _open(teacher, self.views, Path(cache_dir).expanduser(), device, accelerator)
        self.store: LogitStore | DeviceStore = file
        if fits(file.nbytes, device) if on_device is None else on_device:
            self.store = DeviceStore(file, device)
        self.rows = self.hits = 0  # numbers of requested rows, and of those that were known
        self.calls = 0

    @property
    def networks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        return self.teacher.networks

    def frozen(self) -> AbstractContextManager[None]:
        return self.teacher.frozen()

    def flush(self) -> None:
        """Wait until all rows are in the file, including those being copied from a device."""
        self.store.flush()

    @torch.no_grad()
    def __call__(self, *, each: bool = False, **inputs: Any) -> Tensor:
        """The logits [B, C] of a batch with `pixel_values` [B, 3, H, W], `index` [B] and `view` [B].

        With V views of each image `view` is [B, V], and the images are [B, V, 3, H, W], or [V · B, 3, H, W] with view 0
        of all of them first; the logits have the images' leading dimensions.
        """
        images = inputs["pixel_values"]
        slots = self._slots(inputs, by_image=images.ndim == 5)  # [M]
        self.calls += 1
        if self.calls & (self.calls - 1) == 0:  # so few that waiting for a GPU takes no time
            self._refuse_altered(images.flatten(0, -4), slots)
        logits, known = self.store.read(slots)
        self.rows, self.hits = self.rows + len(slots), self.hits + int(known.sum())
        if not known.all():
            flat = images.flatten(0, -4)  # [M, 3, H, W]
            unknown = (~known).nonzero().squeeze(-1)
            # A batch without known rows is passed unchanged: the same call as for the live teacher. A compiled
            # teacher always gets whole batches: each new size would be compiled again.
            if known.any() and not self.teacher.compiled:
                fresh = self.teacher(pixel_values=flat[send(unknown, flat.device)])
            else:
                fresh = self.teacher(pixel_values=flat)[send(unknown, flat.device)]
            logits[send(unknown, logits.device)] = self.store.write(slots[unknown], fresh)
        return logits.to(images.device).unflatten(0, images.shape[:-3])

    def _refuse_altered(self, images: Tensor, slots: Tensor) -> None:
        """Raise ValueError if images [M, 3, H, W] are not those of their `slots` [M], whose logits they would get."""
        numbered = (slots >= 0).nonzero().squeeze(-1)
        if not len(numbered):
            return
        mine = images[send(numbered, images.device)].float()
        its = self.views.images(slots[numbered])
        if mine.shape == its.shape:
            altered = ((mine - send(its, mine.device)).abs() > SAME).flatten(1).any(1).nonzero()
        else:
            altered = torch.zeros(1, 1, dtype=torch.int64)
        if len(altered):
            index, view = divmod(int(slots[numbered[int(altered[0])]]), self.num_views)
            raise ValueError(
                f"the image of index {index} and view {view} is not what the dataset's transform makes of it: "
                "something changes images after that (MixUp, CutMix or erasing in a data_collator, or in a subclass "
                "of the trainer), and would get logits that are stored for others. Leave teacher_cache_dir out, or "
                "set `view` to -1 for changed images"
            )

    def _slots(self, inputs: dict[str, Any], by_image: bool) -> Tensor:
        """The slot [M] of each row in the store, -1 for a view without a number."""
        on_host = inputs.get("host_rows")
        if on_host is None and ("index" not in inputs or "view" not in inputs):
            raise ValueError(
                f"a batch with {sorted(inputs)} does not identify image and view of its rows: keep the dataset's "
                "columns `index` and `view` in the collator, or leave teacher_cache_dir out"
            )
        view = inputs["view"].cpu() if on_host is None else on_host.view
        index = inputs["index"].cpu() if on_host is None else on_host.index
        index = index.view(-1, *[1] * (view.ndim - 1))  # [B] or [B, 1]
        slots = torch.where(view < 0, -1, index * self.num_views + view)
        images = self.store.slots // self.num_views
        if bool((slots >= self.store.slots).any()):
            raise ValueError(
                f"index {int(slots.max()) // self.num_views} is beyond the {images} images of the cache, which "
                "covers only its training set: use the live teacher for other images"
            )
        return slots.flatten() if by_image or view.ndim == 1 else slots.T.flatten()


class NumberedViews:
    """All views of the images of a dataset, by the number of their slot: index · num_views + view."""

    def __init__(self, dataset: Dataset, transform: ImageTransform) -> None:
        index = torch.as_tensor(dataset.with_format("numpy")["index"][:])
        if index.unique().numel() != len(dataset) or index.min() < 0:
            raise ValueError(
                "images of the training set share an `index`, by which the teacher's logits are stored: number the "
                "rows uniquely, or leave teacher_cache_dir out"
            )
        self.dataset, self.transform = dataset, transform
        self.slots = (int(index.max()) + 1) * transform.num_views
        self.stored, self.each = dataset.with_format(None), replace(transform, augment=True, views=1)
        self.index, self.row = index.sort()

    def images(self, slots: Tensor) -> Tensor:
        """The normalised images [M, 3, H, W] of the slots [M], on the CPU."""
        index, views = slots // self.transform.num_views, slots % self.transform.num_views
        rows = self.row[torch.searchsorted(self.index, index)]
        images = unpack_pixels(self.stored[rows.tolist()]["pixels"])
        return self.each.rows(images, index, index, views)["pixel_values"]


@torch.no_grad()
def _open(
    teacher: FrozenTeacher,
    views: NumberedViews,
    folder: Path,
    device: torch.device,
    accelerator: Accelerator | None,
) -> LogitStore:
    """Open the file for this teacher, images and views, and compare stored rows. Must be called on every rank."""
    dataset, transform = views.dataset, views.transform
    image = dataset.with_transform(transform.clean())[0]["pixel_values"]
    logits = teacher.uncompiled(pixel_values=image[None].to(device))
    _refuse_wide(logits)
    precision = accelerator.mixed_precision if accelerator else "no"
    key = _key(teacher, dataset, transform, f"{precision} on {device.type}")
    open_file = partial(LogitStore, folder / file_name(key), key, views.slots, classes=logits.shape[-1])
    file = open_file()
    fault = _differs(file, teacher, views, tolerance(teacher, precision, device.type), device)
    return file if everywhere(fault is None, accelerator) else _begun_anew(file, fault, accelerator, open_file)


def _key(teacher: FrozenTeacher, dataset: Dataset, transform: ImageTransform, precision: str) -> dict[str, str]:
    """Everything that a stored row depends on."""
    return {
        "teacher": teacher_key(teacher),
        "data": data_fingerprint(dataset),
        "views": f"{transform.view_set} {code_hash(type(transform))}",
        "precision": precision,
    }


def _differs(
    file: LogitStore, teacher: FrozenTeacher, views: NumberedViews, share: float, device: torch.device
) -> str | None:
    """Describe how the teacher differs from the logits stored for a few views; None if not. share: the `tolerance`."""
    slots = file.examples()
    stored, found = file.read(slots)
    slots, stored = slots[found], stored[found]
    if not len(slots):
        return None
    seen = views.images(slots)
    live = teacher.uncompiled(pixel_values=seen.to(device)).float().cpu()  # [R, C]
    near = (stored > stored.amax(1, keepdim=True) - NATURAL) | (live > live.amax(1, keepdim=True) - NATURAL)
    names = [f"logit {number}" for number in range(stored.shape[1])]
    places = (divmod(slot, views.transform.num_views) for slot in slots.tolist())
    allowed = size_of(stored) * share
    return disagreement(
        names,
        [f"{index} in view {view}" for index, view in places],
        stored.where(near, 0),
        live.where(near, 0),
        allowed,
    )


def _begun_anew(
    file: LogitStore, fault: str | None, accelerator: Accelerator | None, open_file: Callable[[], LogitStore]
) -> LogitStore:
    """Replace `file` by an empty one, on every rank; runs that have the old one open keep using it."""
    said = fault or "another process found different values"
    logger.warning("The logits in %s are not from this teacher: %s. The file is replaced.", file.path, said)
    if accelerator is not None:
        accelerator.wait_for_everyone()  # until all ranks have compared
    if accelerator is None or accelerator.is_local_main_process:
        file.path.unlink(missing_ok=True)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return open_file()


def _refuse_wide(logits: Tensor) -> None:
    """Raise ValueError for finite logits [1, C] that `encode` cannot represent."""
    if logits.isfinite().all() and not encode(logits.float())[1].isfinite().all():
        raise ValueError(
            f"the teacher's logits of the first training image run from {logits.min().item():.3g} to "
            f"{logits.max().item():.3g}, but 16 bits can represent a range of {WIDEST:g} only (besides masked "
            "classes with one value far below all others): mask classes with a single value, or leave "
            "teacher_cache_dir out"
        )
