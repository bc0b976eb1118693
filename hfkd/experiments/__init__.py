"""What recipes share: a run from flags to results, chains, peers, tables."""
