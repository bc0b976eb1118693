"""Shared parts of the recipes: runs from flags to results, chains, peers, tables."""
