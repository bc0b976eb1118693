"""What the name of a metric says about it."""


def is_divergence(metric: str) -> bool:
    """Whether it is `eval_kl`, or that of one of several sets: smaller is better, though it is not called a loss."""
    return metric.split("_")[-1] == "kl"
