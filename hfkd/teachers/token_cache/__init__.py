"""A cache of a language model's outputs at target tokens: top-k logits, energies, entropies."""
