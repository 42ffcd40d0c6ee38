"""From files to batches: layouts, tables, splits, checks and decoding."""
