"""The job of a run: files, options, and the place of its checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxq.data.preprocess import Preprocess
from onnxq.options.recipe import Recipe
from onnxq.progress import Progress, Silent
from onnxq.runtime.dataset import Samples
from onnxq.train.checkpoint import Checkpoint, checkpoint_folder
from onnxq.version import VERSION


@dataclass(frozen=True)
class Job:
    """The job of one run.

    Attributes:
        model: the ONNX file.
        data: the samples; None where they are to be generated.
        recipe: the options.
        progress: told how far each stage is.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        generator: the file of a saved generator, which generates the samples.
        save_generator: the file to write the trained generator to.
        out: the file to write; None writes none.
        resume: whether to resume from the checkpoint of a stopped run.
        allow_worse: whether a result is written that is no smaller than the original, or broken.
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
        """The checkpoint of the run, beside its output; None where there is no output.

        Args:
            samples: the samples of the run; None where they are to be generated.
            layers: names of the layers that are quantized.
            more: further values that have to be equal to resume.
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


def make_job(
    model: str | Path,
    data: str | Path | None,
    recipe: Recipe,
    progress: Progress | None,
    preprocess: Preprocess | None,
    generator: str | Path | None,
    save_generator: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    allow_worse: bool = False,
) -> Job:
    """The job of these values; files may be named by text, and no progress means silence."""
    files = (_path_of(generator), _path_of(save_generator), _path_of(out))
    told = progress or Silent()
    return Job(Path(model), _path_of(data), recipe, told, preprocess, *files, resume, allow_worse)


def _path_of(path: str | Path | None) -> Path | None:
    """A path, or None for None."""
    return None if path is None else Path(path)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
