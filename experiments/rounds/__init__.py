"""The rounds of one experiment: train, measure, prune, restart."""
