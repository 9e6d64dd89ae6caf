"""The public names, which `import onnxq` loads at first use."""

from onnxq import __version__
from onnxq.data.preprocess import Preprocess
from onnxq.distillation.distillation import distill
from onnxq.distillation.result import DistillResult
from onnxq.errors import (
    DataError,
    EngineError,
    ModelError,
    OnnxqError,
    OutputError,
    PassError,
    RecipeError,
    UnreadableError,
    WorseError,
)
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.pipeline import compress, sensitivity
from onnxq.report.inspection import inspect
from onnxq.search.table import SweepTable
from onnxq.verify.benchmark import benchmark
from onnxq.verify.compare import compare
from onnxq.verify.evaluate import evaluate
from onnxq.verify.result import Result

__all__ = [
    "DataError",
    "DistillResult",
    "EngineError",
    "LayerOverride",
    "ModelError",
    "OnnxqError",
    "OutputError",
    "PassError",
    "Preprocess",
    "Recipe",
    "RecipeError",
    "Result",
    "SweepTable",
    "UnreadableError",
    "WorseError",
    "__version__",
    "benchmark",
    "compare",
    "compress",
    "distill",
    "evaluate",
    "inspect",
    "sensitivity",
]
