"""One label per text or audio clip: `ForSequenceClassification`, `ForAudioClassification`."""

from hfkd.tasks.base import register_task
from hfkd.tasks.rows import PerRow


@register_task("sequence_classification")
class SequenceClassification(PerRow):
    """An item is a row."""

    pipeline_tag = "text-classification"
    item = "a row"
    problem_type = "single_label_classification"
