"""What a run is asked for, and where it keeps its state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxq.data.preprocess import Preprocess
from onnxq.options.recipe import Recipe
from onnxq.progress import Progress
from onnxq.runtime.dataset import Samples
from onnxq.train.checkpoint import Checkpoint, checkpoint_folder
from onnxq.version import VERSION


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        model: the ONNX file.
        data: the samples; None where they are to be made.
        recipe: the options.
        progress: told where the work stands.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        generator: the file of a saved generator, which makes the samples.
        save_generator: the file to write the generator to that is trained.
        out: the file to write; None writes none.
        resume: whether to go on from the checkpoint of a stopped run.
        allow_worse: whether a result is wanted that is no smaller than the original, or broken.
    """

    model: Path
    data: Path | None
    recipe: Recipe
    progress: Progress
    preprocess: Preprocess | None = None
    generator: Path | None = None
    save_generator: Path | None = None
    out: Path | None = None
    resume: bool = False
    allow_worse: bool = False

    def checkpoint(
        self, samples: Samples | None, layers: Iterable[str] = (), **more: str
    ) -> Checkpoint | None:
        """Where the run keeps its state: beside its output; None where it has none.

        Args:
            samples: those that are used; None where they are to be made.
            layers: names of the layers that are quantized.
            more: what else makes runs the same.
        """
        if self.out is None:
            return None
        used = "none"
        if self.data is not None and samples is not None:
            used = f"{self.data.absolute()} {samples.count}"
        identity = {
            **more,
            "model": file_digest(self.model),
            "generator": "none" if self.generator is None else file_digest(self.generator),
            "data": used,
            "recipe": self.recipe.to_json(),
            "layers": hashlib.sha256("\n".join(layers).encode()).hexdigest(),
            "version": VERSION,
        }
        return Checkpoint(checkpoint_folder(self.out), identity)


def path_of(path: str | Path | None) -> Path | None:
    """The path of a file that need not be there."""
    return None if path is None else Path(path)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
