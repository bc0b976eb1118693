"""scikit-learn's handwritten digits: 1,797 real images that are available without a download."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from hfkd.data.transforms import pack_pixels


def load_digits(test_images: int = 597, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Training and test split with the columns of `load_images`; grey 8x8 images (0 to 16) as RGB bytes."""
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    order = np.random.default_rng(seed).permutation(len(grey))
    features = Features(
        {"pixels": Value("binary"), "labels": ClassLabel(names=[str(d) for d in range(10)]), "index": Value("int64")}
    )
    splits = []
    for rows in (order[test_images:], order[:test_images]):
        pixels = [pack_pixels(np.repeat(grey[i][:, :, None], 3, axis=2)) for i in rows]
        columns = {"pixels": pixels, "labels": digits.target[rows], "index": np.arange(len(rows))}
        splits.append(Dataset.from_dict(columns, features=features))
    return splits[0], splits[1]
