"""What the trainer is made of: forward passes, checkpoints, checks, schedules, the identity of a run."""
