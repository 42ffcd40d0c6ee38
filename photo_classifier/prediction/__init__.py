"""From a checkpoint to predictions and result files."""
