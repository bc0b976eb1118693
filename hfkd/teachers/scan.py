"""One pass of the teacher over the training set: the energy and entropy of every sample, or of every item.

S samples: images, rows of tokens, or packed documents. N items of a batch: images, or target tokens. B its rows.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import OneEpoch, image_transform, refuse_streams
from hfkd.data.high_energy import original_images
from hfkd.files import write_atomically
from hfkd.finite import broken_rows
from hfkd.items import IMAGES, ItemRule
from hfkd.slot_types import Temperature, fitting
from hfkd.teachers.all_ranks import of_all_ranks, samples_of_all_ranks
from hfkd.teachers.live import LiveTeacher
from hfkd.temperatures import Level

logger = logging.getLogger(__name__)

HASHED_WHOLE = 2 << 30  # bytes of Arrow data up to which the content itself is hashed
Views = Literal["train", "clean"]


@dataclass(frozen=True)
class TeacherScan:
    """Energy, entropy and predicted class in the order of the dataset, on the CPU: [S] each, or of every item.

    NaN for a row of tokens that has no target: it is no sample, and its energy no one's.
    """

    energy: Tensor
    entropy: Tensor
    prediction: Tensor

    def add_to(self, dataset: Dataset) -> Dataset:
        """The dataset with the columns `teacher_energy` and `teacher_entropy`."""
        dataset = dataset.add_column("teacher_energy", self.energy.tolist())
        return dataset.add_column("teacher_entropy", self.entropy.tolist())


@dataclass(frozen=True)
class _Key:
    """Everything a scan's numbers depend on; a cached scan is used only when all of it is the same."""

    teacher: str
    data: str
    transform: str
    collate: str
    views: Views
    precision: str
    energy_temperature: float
    entropy_temperature: float
    seed: int
    level: Level
    num_classes: int | None

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def file_name(self) -> str:
        return f"scan-{xxhash.xxh3_64_hexdigest(self.text.encode())}.safetensors"


def scan(
    teacher: nn.Module,
    dataset: Any,
    *,
    views: Views = "train",
    energy_temperature: float = 4.0,
    entropy_temperature: float = 3.0,
    collate: Callable[..., dict[str, Tensor]] | None = None,
    rule: ItemRule = IMAGES,
    level: Level = "sample",
    num_classes: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> TeacherScan:
    """Run the teacher once over `dataset` and return the energy and entropy of each image, or mean of each sequence.

    `level="item"` gives those of each target token, row after row, in place of the means. `num_classes` cuts a padded
    vocabulary, as training does.

    `views="train"` takes the images as training's first epoch will (augmented: thresholds are compared with such
    views), "clean" without augmentation (to choose HE-DA samples), which needs an `ImageTransform`. Sharded over the
    ranks of `accelerator`. With `cache_dir`, stored under a fingerprint of teacher, data and transform; a damaged or
    stale file is redone, with a log line. Random transforms other than `ImageTransform` start from `seed`.
    The paper's authors drop the last partial batch; here every image counts, but none that HE-DA added.
    Raises ValueError when the teacher gives NaN or infinity, naming the first images.
    """
    live = _live(teacher)
    dataset, collate = _seen(original_images(dataset), views), collate or ImageCollator()
    precision = accelerator.mixed_precision if accelerator else "no"
    level = "sample" if rule is IMAGES else level  # an image is its only item
    choices = {"views": views, "precision": precision, "seed": seed, "level": level, "num_classes": num_classes}
    temperatures = {"energy_temperature": energy_temperature, "entropy_temperature": entropy_temperature}
    for name, value in temperatures.items():
        fitting("scan", name, value, Temperature)
    key = _key(live, dataset, collate, **choices, **temperatures) if cache_dir else None
    path = Path(cache_dir) / key.file_name if cache_dir and key else None
    cached = _read(path, key, len(dataset) if rule is IMAGES else None) if path and key else None
    shared = _everywhere(cached is not None, accelerator)
    if cached is not None and shared:
        return cached
    workers = 0 if isinstance(dataset, OneEpoch) else num_workers  # each would read all of it
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate)
    # The loader draws on the CPU; by default, fork_rng would wake every GPU of the node.
    with live.frozen(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result = _run(live, loader, rule, accelerator, *temperatures.values(), level, num_classes, progress_bar)
    if path and key and (accelerator is None or accelerator.is_local_main_process):
        metadata = {"key": key.text, "checksum": _checksum(result)}
        write_atomically(path, save(vars(result), metadata))
    if accelerator is not None:
        accelerator.wait_for_everyone()  # so that the next scan's ranks all find the file
    return result


def _live(teacher: nn.Module) -> LiveTeacher:
    """`teacher` itself where it is one, also compiled: `place` gives torch.compile's wrapper under `torch_compile`."""
    if isinstance(getattr(teacher, "_orig_mod", teacher), LiveTeacher):
        return cast(LiveTeacher, teacher)
    return LiveTeacher(teacher).unfreeze()


@torch.no_grad()
def _run(
    teacher: LiveTeacher,
    loader: Any,
    rule: ItemRule,
    accelerator: Accelerator | None,
    t_e: float,
    t_h: float,
    level: Level,
    num_classes: int | None,
    progress_bar: bool,
) -> TeacherScan:
    samples, every_item, parameter = [], [], next(teacher.parameters(), None)
    device, source = torch.device("cpu") if parameter is None else parameter.device, loader
    if accelerator is not None:
        loader = accelerator.prepare(loader)
    quiet = not progress_bar or not (accelerator is None or accelerator.is_main_process)
    for batch in tqdm(loader, desc="Scanning the training set with the teacher", disable=quiet, leave=False):
        batch = send_to_device(batch, device)
        logits = teacher(**batch)[..., :num_classes]
        items = rule.of(batch, logits, logits)
        energy, entropy = items.teacher.energy(t_e), items.teacher.entropy(t_h)  # [N]
        likeliest = items.teacher.logits.argmax(-1).float()
        per_item = torch.stack([energy, entropy, likeliest, torch.ones_like(energy)], dim=-1)  # [N, 4]
        seen = items.sample_means(per_item)  # [S, 4], the last 0 for a sample without items
        samples.append(samples_of_all_ranks(seen, items, accelerator))
        if level == "item":
            every_item.append(of_all_ranks(per_item, *items.rows, accelerator).cpu())
    of_samples = torch.cat(samples)
    # A logit of -inf leaves the energy finite, and the entropy NaN.
    broken = (~torch.isfinite(of_samples[:, :2].sum(-1))).nonzero().flatten().tolist()
    if broken:
        part = _what_broke(teacher, source.collate_fn([source.dataset[broken[0]]]), device, t_e, t_h)
        rows = f"for {len(broken)} of {len(of_samples)} training rows (first at rows {broken[:5]})"
        raise ValueError(part.format(rows))
    if level == "item":
        return _as_scan(torch.cat(every_item))
    of_samples[of_samples[:, 3] == 0, :2] = torch.nan
    return _as_scan(of_samples)


def _as_scan(columns: Tensor) -> TeacherScan:
    energies, entropies, predictions, _ = columns.float().cpu().T.contiguous()
    return TeacherScan(energies, entropies, predictions.long())


def _what_broke(teacher: LiveTeacher, batch: dict[str, Any], device: torch.device, t_e: float, t_h: float) -> str:
    """Of a row whose energy or entropy is not finite: the first part that is not, inputs before the teacher."""
    if broken_rows(batch):
        return "the inputs are NaN or infinite {}: check the data, and what its transform makes of them"
    if torch.isfinite(teacher(**send_to_device(batch, device))).all():
        return f"energy_temperature={t_e} or entropy_temperature={t_h} gives NaN or infinity {{}}: choose one nearer 1"
    return "the teacher gives NaN or infinite logits {}: check its checkpoint and its precision"


def _everywhere(found: bool, accelerator: Accelerator | None) -> bool:
    """Whether every rank found it: one that did not would wait for the others' images for ever."""
    if accelerator is None or accelerator.num_processes == 1:
        return found
    return bool(accelerator.gather(torch.tensor([int(found)], device=accelerator.device)).all())


def _seen(dataset: Any, views: Views) -> Any:
    if views not in ("train", "clean"):
        raise ValueError(f"views={views!r} must be 'train' or 'clean'")
    refuse_streams(dataset)
    if isinstance(dataset, IterableDataset):
        return OneEpoch(dataset)
    transform = image_transform(dataset)
    if transform is not None:
        return dataset.with_transform(transform.clean() if views == "clean" else transform.at_epoch(0).one_view())
    if views == "clean":
        raise ValueError(
            "views='clean' needs a dataset whose transform is an hfkd ImageTransform; pass the dataset without "
            "augmentation, with views='train'"
        )
    return dataset


def _key(teacher: LiveTeacher, dataset: Any, collate: Callable[..., Any], **choices: Any) -> _Key | None:
    """None for a dataset, transform or collate function whose content has no name: such a scan is not cached."""
    if not isinstance(dataset, Dataset):
        return None
    ours = image_transform(dataset)
    try:
        transform = repr(ours) if ours is not None else Hasher.hash(dataset.format)
        collated = Hasher.hash(collate)
    except Exception as error:  # whatever pickling runs into
        logger.warning("The teacher scan is not cached: the transform or the collator cannot be hashed (%s)", error)
        return None
    return _Key(weights_fingerprint(teacher), data_fingerprint(dataset), transform, collated, **choices)


def weights_fingerprint(teacher: LiveTeacher) -> str:
    """A hash of every weight and buffer, the modules that hold them, and the inputs the teacher gets."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(teacher.model))  # strides, activations: what no weight tells
    order = "" if teacher.order is None else str(teacher.order.tolist())
    digest.update(f"{modules}{teacher.received}{teacher.wanted}{order}".encode())
    return digest.hexdigest()


def data_fingerprint(dataset: Dataset) -> str:
    """A hash of the rows themselves; of what `datasets` knows about their origin when they are many gigabytes."""
    if dataset.data.table.nbytes > HASHED_WHOLE:
        return dataset._fingerprint
    digest = xxhash.xxh3_128(",".join(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=4096):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _read(path: Path, key: _Key, rows: int | None) -> TeacherScan | None:
    """What `path` holds, if it belongs to `key` and has one number for each of `rows` (None: of items, not counted)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            result = TeacherScan(*(file.get_tensor(name) for name in ("energy", "entropy", "prediction")))
        sound = metadata.get("checksum") == _checksum(result) and rows in (None, len(result.energy))
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a foreign file's tensors, of other kinds
        reason = f"it cannot be read ({error})"
    else:
        if sound and metadata.get("key") == key.text:
            logger.info("Using the teacher scan in %s", path)
            return result
        reason = "it belongs to another teacher, dataset or transform" if sound else "its numbers were altered"
    logger.warning("The teacher scan in %s is not used: %s. Scanning again.", path, reason)
    return None


def _checksum(result: TeacherScan) -> str:
    return xxhash.xxh3_64_hexdigest(b"".join(tensor.numpy().tobytes() for tensor in vars(result).values()))
