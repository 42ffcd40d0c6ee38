"""The names of the files of a run folder that tell how far the run is."""

from __future__ import annotations

CONFIG = "config.json"
LAST, BACKBONE, FINISHED = "last.pth", "backbone.pth", "finished.json"
ENDED = "ended.json"  # marks a dry run, or a run that an error ended before its first save
REPORT = "report.json"
PREDICTIONS = "predictions.csv"
