"""The teacher scan with the teacher, data, ranks and cache of a trainer."""

from typing import Any

from hfkd.teachers import TeacherScan, scan
from hfkd.training.host import Host


def scan_of(trainer: Host, rows: Any = None, **keywords: Any) -> TeacherScan:
    """`hfkd.teachers.scan` of the training set, or of `rows` of it. ValueError without a teacher or a training set."""
    args = trainer.args
    if trainer.teacher is None or trainer.train_dataset is None:
        raise ValueError("a teacher scan needs a teacher and a train_dataset: pass both")
    keywords = {"entropy_temperature": trainer.teacher.entropy_temperature} | keywords
    return scan(
        trainer.teacher,
        trainer.train_dataset if rows is None else rows,
        collate=trainer.training_collator,
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
