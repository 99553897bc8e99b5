"""Benchmarks of training steps, face detection, searches and file sizes."""
