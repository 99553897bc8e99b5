"""Tuning: what `python -m experiments tune` is made of."""
