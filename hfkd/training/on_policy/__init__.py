"""Training on responses that student or teacher write while it trains: GKD, sequence-level KD."""
