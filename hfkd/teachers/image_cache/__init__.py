"""A cache of an image teacher's logits, filled during training."""
