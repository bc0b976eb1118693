"""Settings that count something, of which there must be one."""


def at_least_one(settings: object, *names: str) -> None:
    """Raise ValueError if one of the named settings is given and below 1: 0 would be taken for all, or for none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more; leave it out for the default")
