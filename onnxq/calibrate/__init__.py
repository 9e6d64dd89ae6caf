"""Statistics of tensors over the samples, in one streaming pass."""

from onnxq.calibrate.calibrator import calibrate
from onnxq.calibrate.statistics import TensorStatistics

__all__ = ["TensorStatistics", "calibrate"]
