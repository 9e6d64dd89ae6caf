"""Every error that a user can cause, each one a single sentence.

OnnxqError
├── ModelError          the model file: not ONNX, truncated, out of range, nothing to quantize
├── DataError           the samples: empty folder, unreadable, wrong shape, NaN
│   └── UnreadableError one file of them: no array, or truncated
├── RecipeError         options: unknown, out of range, contradicting each other
├── OutputError         the output file: exists, not writable, no space
├── WorseError          a result that is no smaller than the original, or broken
├── PassError           a graph pass changed what the model computes (a defect of onnxq)
└── EngineError         the engine: not installed, or a graph that it can't differentiate
"""

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class OnnxqError(Exception):
    """The root; its text names the thing, says what was found and what to do next."""


class ModelError(OnnxqError):
    """The model can't be read, or is not supported."""


class DataError(OnnxqError):
    """The samples can't be read, or don't fit the model."""


class UnreadableError(DataError):
    """A file holds no array, or is truncated; other files beside it may be fine."""


class RecipeError(OnnxqError):
    """An option is unknown, out of range, or contradicts another."""


class OutputError(OnnxqError):
    """The output can't be written."""


class WorseError(OnnxqError):
    """The result is no smaller than the original, or broken; it is not written."""


class PassError(OnnxqError):
    """A graph pass changed what the model computes."""


class EngineError(OnnxqError):
    """The engine that is asked for is missing, or can't differentiate the graph."""


def reason_of(error: BaseException) -> str:
    """The first line of an error's text without its full stop, or the error's type."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
