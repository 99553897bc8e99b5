"""Comparison: several methods over several seeds, in numbers, pictures and one page."""
