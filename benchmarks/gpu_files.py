"""Copy the files that gpu_session.sh needs into folders small enough to send to a machine without network access.

    python benchmarks/gpu_files.py --dataset_name cifar100 --teacher_checkpoint wrn_16_2.pth
        --text_dataset_name dolly.jsonl --tokenizer gpt2-tokenizer --output_dir gpu_files

Folder 1 has wheels that a machine with PyTorch and transformers may lack, the teacher's weights, the tokenizer, the
first rows of the instructions, the test images and a list of the image files; the other folders have the training
images. gpu_session.sh runs what is possible with the folders that it finds.
"""

import argparse
import shutil
import subprocess
import sys
from importlib import metadata
from itertools import islice
from pathlib import Path

WHEELS = ("datasets", "dill", "multiprocess", "evaluate", "timm", "trl", "liger-kernel")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", type=Path, required=True, help="folder of Parquet files, train-* and test-*")
    parser.add_argument("--teacher_checkpoint", type=Path, required=True, help="the image teacher's weights")
    parser.add_argument("--text_dataset_name", type=Path, required=True, help="instructions, JSON lines")
    parser.add_argument("--text_rows", type=int, default=2000, help="of them, the first that are taken along")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--output_dir", type=Path, default=Path("gpu_files"), help="a new folder")
    parser.add_argument("--part_mib", type=int, default=56, help="the most that one folder may hold")
    parser.add_argument("--python_version", default="3.12", help="of the other machine, for the wheels")
    parser.add_argument("--wheels", nargs="*", default=WHEELS, metavar="NAME", help=", ".join(WHEELS))
    return parser.parse_args()


def first_folder(args: argparse.Namespace, folder: Path) -> None:
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    if args.wheels:
        words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
        words += ["--python-version", args.python_version, "--implementation", "cp"]
        words += [word for name in PLATFORMS for word in ("--platform", name)]
        subprocess.run([sys.executable, "-m", "pip", *words, *map(requirement, args.wheels)], check=True)
    shutil.copyfile(args.teacher_checkpoint, folder / "teacher.pth")
    (folder / "tokenizer").mkdir()
    for path in args.tokenizer.iterdir():
        shutil.copyfile(path, folder / "tokenizer" / path.name)
    with open(args.text_dataset_name, encoding="utf-8") as rows:
        (folder / "text.jsonl").write_text("".join(islice(rows, args.text_rows)), encoding="utf-8")


def requirement(name: str) -> str:
    """The version that is installed here: the newest ones may not fit each other, which --no-deps does not check."""
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    args = parse_args()
    images = [path for split in ("test", "train") for path in sorted(args.dataset_name.glob(f"{split}-*.parquet"))]
    if not any(path.name.startswith("train-") for path in images):
        raise SystemExit(f"--dataset_name {args.dataset_name} has no train-*.parquet: pass the folder of the files")
    too_large = [path for path in images if path.stat().st_size > args.part_mib * MIB]
    if too_large:
        raise SystemExit(f"{too_large[0]} is larger than --part_mib {args.part_mib}: split it into more shards")
    for name in ("teacher_checkpoint", "text_dataset_name"):
        if not getattr(args, name).is_file():
            raise SystemExit(f"--{name} {getattr(args, name)} is not a file: pass its path")
    if not args.tokenizer.is_dir():
        raise SystemExit(f"--tokenizer {args.tokenizer} is not a folder: pass one that save_pretrained wrote")
    if args.output_dir.exists():
        raise SystemExit(f"--output_dir {args.output_dir} already exists: remove it, or choose another")
    number = 1
    first_folder(args, args.output_dir / "1")
    names = "".join(f"{path.name}\n" for path in images)
    (args.output_dir / "1" / "images.txt").write_text(names, encoding="utf-8")
    for path in images:
        folder = args.output_dir / str(number)
        if size(folder) + path.stat().st_size > args.part_mib * MIB:
            number += 1
        target = args.output_dir / str(number) / "images"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    for folder in sorted(args.output_dir.iterdir(), key=lambda folder: int(folder.name)):
        print(f"{folder}: {size(folder) / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
