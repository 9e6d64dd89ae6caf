"""Calibration: statistics of tensors over the samples, in one streaming pass."""

from onnxq.calibrate.calibrator import TensorStatistics, calibrate

__all__ = ["TensorStatistics", "calibrate"]
