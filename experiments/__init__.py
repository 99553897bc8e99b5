"""Experiments: `python -m experiments --help` lists what can be run."""
