"""Slices to patients, metrics with intervals, calibration, figures and the report."""
