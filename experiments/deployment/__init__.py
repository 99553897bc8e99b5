"""Deployment: a pruned network in forms that are smaller and faster, and what each costs."""
