"""How good predictions are: metrics, calibration, reports and figures."""
