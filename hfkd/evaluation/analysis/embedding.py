"""t-SNE of penultimate features, and the separation of classes (Calinski-Harabasz index).

n images, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PERPLEXITY = 30.0


@dataclass(frozen=True)
class Embedding:
    """rows [m]: numbers of the embedded images; points [m, 2]: their positions.

    The Calinski-Harabasz index of all images' features, and of the points, with labels as clusters; NaN if undefined:
    it needs at least two classes, and more images than classes.
    """

    rows: Tensor
    points: Tensor
    index_of_features: float
    index_of_points: float


def embedding(features: Tensor, labels: Tensor, images: int = 1000, seed: int = 0) -> Embedding:
    """t-SNE (scikit-learn; van der Maaten and Hinton 2008) of the features [n, D] of `images` random images. Perplexity
    is 30, or a third of the number of images if that is less; it starts from the first two principal components. The
    same seed selects the same images for every network.
    """
    from sklearn.manifold import TSNE

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(features), generator=generator)[:images].sort().values
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    points = torch.from_numpy(tsne.fit_transform(features[rows].numpy()))
    return Embedding(rows, points, separation(features, labels), separation(points, labels[rows]))


def separation(features: Tensor, labels: Tensor) -> float:
    """The Calinski-Harabasz index: variance between classes over variance within, each per degree of freedom.

    (B / (k - 1)) / (W / (n - k)), with B and W the sums of squared distances of the k class means from the mean (each
    times its images), and of the images from their class's mean. NaN unless 1 < k < n.
    """
    from sklearn.metrics import calinski_harabasz_score

    if not 1 < len(labels.unique()) < len(labels):
        return float("nan")
    return float(calinski_harabasz_score(features.numpy(), labels.numpy()))
