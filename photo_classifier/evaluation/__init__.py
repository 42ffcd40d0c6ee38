"""Evaluates predictions: metrics, calibration, reports and figures."""
