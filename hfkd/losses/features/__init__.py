"""Objectives on inner features: how far the student is from the teacher on each sample. `(Items, T [N]) -> [S]`."""
