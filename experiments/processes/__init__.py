"""Processes: executors here and on a cluster, locks, signals, and what the terminal shows."""
