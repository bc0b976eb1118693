"""Parts of the trainer: forward passes, checkpoints, validation, schedules, the identity of a run."""
