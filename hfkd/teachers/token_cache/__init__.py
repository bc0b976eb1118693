"""A language model whose outputs on the target tokens are stored once: top-k logits, energies, entropies."""
