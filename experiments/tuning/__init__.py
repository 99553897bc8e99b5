"""Tuning: searches for the best parameters with Optuna (`python -m experiments tune`)."""
