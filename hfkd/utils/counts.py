"""Checks of settings that must be at least 1."""


def at_least_one(settings: object, *names: str) -> None:
    """Raise ValueError if one of the named settings is set and below 1, as 0 would be ambiguous."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more; leave it out for the default")
