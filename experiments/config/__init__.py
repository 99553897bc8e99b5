"""What an experiment, a comparison and a search can be asked for, and what "auto" means."""
