"""Predicts with a checkpoint and writes result files."""
