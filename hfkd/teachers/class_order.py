"""The order in which a teacher has the data's classes."""

import logging
from collections.abc import Sequence

from hfkd.models.label_names import order_of, same_names
from hfkd.teachers.frozen import FrozenTeacher

logger = logging.getLogger(__name__)


def order_for(teacher: FrozenTeacher, names: Sequence[str], whose: str) -> list[int] | None:
    """`order_of` a teacher with class names; other names are allowed where its `classes` say which class is which.

    That is, if no name of the data stands at another place.
    """
    own = teacher.label_names or ()
    try:
        return order_of(own, names, whose, "the data")
    except ValueError:
        if teacher.classes is None or len(own) != len(names):
            raise
        pairs = [(its, name) for its, name in zip(own, names, strict=True) if not same_names([its], [name])]
        if any(same_names([its], [name]) for its, _ in pairs for _, name in pairs):
            raise
    logger.warning(
        "Classes of %s are taken for classes of the data that have another name, as classes=%s says: %s.",
        whose, list(teacher.classes), ", ".join(f"{its} for {name}" for its, name in pairs)
    )  # fmt: skip
    return None
