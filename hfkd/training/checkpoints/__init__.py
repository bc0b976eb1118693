"""Atomic checkpoints, and resuming from them."""
