"""Pruning as pure functions over plain state and mask dictionaries."""
