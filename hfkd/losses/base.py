"""What every objective is: `(Items, T [N]) -> [N]`, one number per item, T² included where it softened."""

from abc import ABC, abstractmethod

from torch import Tensor

from hfkd.losses.items import Items


class Objective(ABC):
    """An objective is stateless unless it also derives from nn.Module; then its parameters train with the student.

    `needs_hidden`: it reads hidden states. `relational`: an item's number depends on other items of the batch.
    `ordered_views`: an image's first view is not treated as the others are. `counts_epochs`: how many its warm-up
    lasts. `least_items`: how many a batch must have for its relations to say something. Whoever cannot serve that (a
    chunked loss, a cache of logits, peers, a stream of unknown length, a batch of one) refuses when the trainer is
    built. `divergence`: it is zero where the student equals the teacher, and never below.
    """

    divergence: bool = True
    needs_hidden: bool = False
    relational: bool = False
    ordered_views: bool = False
    counts_epochs: float = 0
    least_items: int = 1

    @abstractmethod
    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        """The divergence of each item [N], at that item's temperature [N]."""

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        """What comes of comparing items with each other, shared out among them [N]; None without such terms.

        Added to the weighted objective as it is: a relation belongs to no single item, so no item's weight applies.
        Items are compared within the batch at hand, so accumulation and ranks change it.
        """
        return None
