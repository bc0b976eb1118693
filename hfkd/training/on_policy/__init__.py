"""Training on responses that student or teacher generate during training: GKD, sequence-level KD."""
