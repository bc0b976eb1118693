"""Checkpoints that are there whole or not at all, and resume what was interrupted."""
