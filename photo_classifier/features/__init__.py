"""Computes, stores and reuses the features of frozen backbones."""
