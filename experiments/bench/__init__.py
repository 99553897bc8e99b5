"""Benchmarks of training steps, face detection and searches."""
