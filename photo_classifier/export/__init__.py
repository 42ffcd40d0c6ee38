"""Turns a checkpoint into files that other programs run."""
