"""The names of the objectives: of those that read logits, and of those that read inner features."""

from hfkd.losses.logits import OBJECTIVES

ON_FEATURES = [name for name, make in OBJECTIVES.items() if getattr(make, "level", "item") == "sample"]
ON_LOGITS = [name for name in OBJECTIVES if name not in ON_FEATURES]
