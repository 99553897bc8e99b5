"""Figures: the style they share, and the figures of one experiment."""
