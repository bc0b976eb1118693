"""A teacher that runs once for each view of an image, and is remembered after that.

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
from hfkd.utils.devices import send

logger = logging.getLogger(__name__)


class CachedTeacher(Teacher):
    """`teacher` for the training images of `dataset`: the same call, and its logits from a file where they are known.

    A teacher in eval mode has one row of logits for each image and view, and a padded crop with a flip has a countable
    number of views (CIFAR: 81 · 2), so a batch's `index` and `view` say where its logits are. Rows that the file does
    not hold yet run through the teacher, only those, and are stored; rows whose view is -1, which has no number
    (RandAugment, CutMix), run through it every time. The file belongs to the teacher's weights and inputs, the rows of
    `dataset`, the set of views, the precision and the kind of device, and is shared by all runs that agree in these,
    also at the same time. It knows the training images alone: ask the live teacher about others. The images that HE-DA
    adds have no number, and the others the same file as without them. With `on_device` the device holds the rows in its
    memory too, as a GPU with room for them does by default (`DeviceStore`); with `ResidentImages` no look-up waits
    for the GPU then.

    The logits differ from the live teacher's by at most 1/65,534 of their row's range, logsumexp by float32 rounding
    (`quantize.encode`), whether they were known or are new: the first run and the later ones train on the same numbers.
    A few rows are compared with the teacher when the file is opened, and it is begun anew where they differ. An image
    whose energy is that near to a threshold may fall on its other side.
    Raises ValueError for a dataset whose views have no numbers or whose images share theirs, and for a full disk.
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
                "the teacher's logits can be kept only for views that have numbers: give a dataset of "
                "hfkd.data.load_images with an ImageTransform, or no teacher_cache_dir"
            )
        self.teacher, self.num_views = teacher, transform.num_views
        parameter = next(teacher.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        file = _open(teacher, dataset, transform, Path(cache_dir).expanduser(), device, accelerator)
        self.store: LogitStore | DeviceStore = file
        if fits(file.nbytes, device) if on_device is None else on_device:
            self.store = DeviceStore(file, device)
        self.rows = self.hits = 0  # how many were asked for, and how many of them were known

    @property
    def networks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        return self.teacher.networks

    def frozen(self) -> AbstractContextManager[None]:
        return self.teacher.frozen()

    def flush(self) -> None:
        """Have all rows in the file, those too that are on their way from a device."""
        self.store.flush()

    @torch.no_grad()
    def __call__(self, *, each: bool = False, **inputs: Any) -> Tensor:
        """The logits [B, C] of a batch with `pixel_values` [B, 3, H, W], `index` [B] and `view` [B].

        With V views of each image `view` is [B, V], and the images are [B, V, 3, H, W], or [V · B, 3, H, W] with view 0
        of all of them first; the logits have the images' leading dimensions.
        """
        images = inputs["pixel_values"]
        slots = self._slots(inputs, by_image=images.ndim == 5)  # [M]
        logits, known = self.store.read(slots)
        self.rows, self.hits = self.rows + len(slots), self.hits + int(known.sum())
        if not known.all():
            flat = images.flatten(0, -4)  # [M, 3, H, W]
            unknown = (~known).nonzero().squeeze(-1)
            # A batch of new rows alone goes as it is: the very call that the live teacher gets.
            # A compiled teacher always gets whole batches: each new size would be compiled anew.
            if known.any() and not self.teacher.compiled:
                fresh = self.teacher(pixel_values=flat[send(unknown, flat.device)])
            else:
                fresh = self.teacher(pixel_values=flat)[send(unknown, flat.device)]
            logits[send(unknown, logits.device)] = self.store.write(slots[unknown], fresh)
        return logits.to(images.device).unflatten(0, images.shape[:-3])

    def _slots(self, inputs: dict[str, Any], by_image: bool) -> Tensor:
        """The place [M] of each row in the store, -1 for a view without a number."""
        on_host = inputs.get("host_rows")
        if on_host is None and ("index" not in inputs or "view" not in inputs):
            raise ValueError(
                f"a batch with {sorted(inputs)} does not say which image and view a row is: keep the columns `index` "
                "and `view` of the dataset in the collator, or give no teacher_cache_dir"
            )
        view = inputs["view"].cpu() if on_host is None else on_host.view
        index = inputs["index"].cpu() if on_host is None else on_host.index
        index = index.view(-1, *[1] * (view.ndim - 1))  # [B] or [B, 1]
        slots = torch.where(view < 0, -1, index * self.num_views + view)
        images = self.store.slots // self.num_views
        if bool((slots >= self.store.slots).any()):
            raise ValueError(
                f"index {int(slots.max()) // self.num_views} is beyond the {images} images whose logits are kept: the "
                "cache serves its own training set alone"
            )
        return slots.flatten() if by_image or view.ndim == 1 else slots.T.flatten()


@torch.no_grad()
def _open(
    teacher: FrozenTeacher,
    dataset: Dataset,
    transform: ImageTransform,
    folder: Path,
    device: torch.device,
    accelerator: Accelerator | None,
) -> LogitStore:
    """The file of this teacher, these images and their views, with what is stored compared. Every rank calls it."""
    index = torch.as_tensor(dataset.with_format("numpy")["index"][:])
    if index.unique().numel() != len(dataset) or index.min() < 0:
        raise ValueError(
            "images of the training set share their `index`, under which the teacher's logits are kept: number the "
            "rows anew, or give no teacher_cache_dir"
        )
    image = dataset.with_transform(transform.clean())[0]["pixel_values"]
    logits = teacher.uncompiled(pixel_values=image[None].to(device))
    _refuse_wide(logits)
    precision = accelerator.mixed_precision if accelerator else "no"
    key = _key(teacher, dataset, transform, f"{precision} on {device.type}")
    slots = (int(index.max()) + 1) * transform.num_views
    open_file = partial(LogitStore, folder / file_name(key), key, slots, classes=logits.shape[-1])
    file = open_file()
    fault = _differs(file, teacher, dataset, transform, tolerance(teacher, precision, device.type), device)
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
    file: LogitStore,
    teacher: FrozenTeacher,
    dataset: Dataset,
    transform: ImageTransform,
    share: float,
    device: torch.device,
) -> str | None:
    """What the teacher at hand gives otherwise than is stored for a few views, if so; `share` is the `tolerance`."""
    slots = file.examples()
    stored, found = file.read(slots)
    slots, stored = slots[found], stored[found]
    if not len(slots):
        return None
    numbers, views = slots // transform.num_views, slots % transform.num_views
    index = torch.as_tensor(dataset.with_format("numpy")["index"][:])
    rows = [int((index == number).nonzero()[0]) for number in numbers]
    images = unpack_pixels([dataset.with_format(None)[row]["pixels"] for row in rows])
    seen = replace(transform, augment=True, views=1).rows(images, numbers, numbers, views)["pixel_values"]
    live = teacher.uncompiled(pixel_values=seen.to(device)).float().cpu()  # [R, C]
    near = (stored > stored.amax(1, keepdim=True) - NATURAL) | (live > live.amax(1, keepdim=True) - NATURAL)
    names = [f"logit {number}" for number in range(stored.shape[1])]
    views_of = [f"{number} in view {view}" for number, view in zip(numbers.tolist(), views.tolist(), strict=True)]
    allowed = size_of(stored) * share
    return disagreement(names, views_of, stored.where(near, 0), live.where(near, 0), allowed)


def _begun_anew(
    file: LogitStore, fault: str | None, accelerator: Accelerator | None, open_file: Callable[[], LogitStore]
) -> LogitStore:
    """An empty file in the place of `file`, on every rank; runs that have the old one open keep that."""
    said = fault or "another process found other numbers"
    logger.warning("The teacher's logits in %s are not this teacher's: %s. The file is begun anew.", file.path, said)
    if accelerator is not None:
        accelerator.wait_for_everyone()  # all have compared
    if accelerator is None or accelerator.is_local_main_process:
        file.path.unlink(missing_ok=True)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return open_file()


def _refuse_wide(logits: Tensor) -> None:
    """Raise ValueError for finite logits [1, C] that `encode` has no levels for."""
    if logits.isfinite().all() and not encode(logits.float())[1].isfinite().all():
        raise ValueError(
            f"the teacher's logits of the first training image run from {logits.min().item():.3g} to "
            f"{logits.max().item():.3g}, and the stored 16 bits tell them apart within {WIDEST:g} (masked classes, "
            "alike and far below all others, aside): mask them with one value, or give no teacher_cache_dir"
        )
