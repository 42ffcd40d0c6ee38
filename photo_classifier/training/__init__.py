"""One training run: optimization, its folder, resuming and its summary."""
