"""The teacher scan of a trainer: its teacher, its data, its ranks and its cache."""

from typing import Any

from hfkd.teachers import CachedTextTeacher, TeacherScan, scan
from hfkd.training.host import Host


def scan_of(trainer: Host, **keywords: Any) -> TeacherScan:
    """`hfkd.teachers.scan` of the training set. ValueError where there is no teacher or no training set."""
    args = trainer.args
    if trainer.teacher is None or trainer.train_dataset is None:
        raise ValueError("a teacher scan needs a teacher and a train_dataset")
    if isinstance(trainer.teacher, CachedTextTeacher):
        return trainer.teacher.scan(trainer.train_dataset, **keywords)
    return scan(
        trainer.teacher,
        trainer.train_dataset,
        collate=trainer.data_collator,
        task=trainer.task,
        num_classes=trainer.num_classes,
        batch_size=max(args.train_batch_size, args.eval_batch_size),
        num_workers=args.dataloader_num_workers,
        accelerator=trainer.accelerator,
        cache_dir=args.scan_cache_dir or None,
        seed=args.seed_of_data,
        progress_bar=not args.disable_tqdm,
        **keywords,
    )
