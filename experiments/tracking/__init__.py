"""Everything that knows MLflow: runs, checkpoints, resuming, and what makes two runs the same."""
