"""The job of a run, and its checkpoint: the state of a run on disk.

A state is written whole or not at all, and read back only by the same run.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxq import __version__
from onnxq.data.preprocess import Preprocess
from onnxq.engine import resolve_engine
from onnxq.errors import OnnxqError, OutputError, WorseError
from onnxq.options.recipe import Recipe
from onnxq.progress import Progress, Silent
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays
from onnxq.runtime.temporary import temporary_folder
from onnxq.train.held_out import Point

STATE = "state"
IDENTITY = "identity"


def checkpoint_folder(out: Path) -> Path:
    """The folder for the checkpoint of the run that writes `out`: beside it."""
    return out.with_name(f"{out.name}.onnxq-checkpoint")


class Checkpoint:
    """A folder with the newest state of one run.

    Args:
        folder: created when the first state is saved.
        identity: model, data, recipe and version; the state of another run is refused.
        name: the file's name without suffix; each stage has its own file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], name: str = STATE) -> None:
        self.folder, self._name = folder, name
        self._fields = dict(identity)
        self._identity = json.dumps(dict(sorted(identity.items())))

    def part(self, name: str) -> Checkpoint:
        """The checkpoint of another stage of the same run, in the same folder."""
        return Checkpoint(self.folder, self._fields, name)

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the saved state by these arrays.

        Raises:
            OutputError: the disk is full, or the folder can't be written.
        """
        path, fresh = self.folder / f"{self._name}.npz", self.folder / "new.npz"
        named = {IDENTITY: np.array(self._identity), **arrays}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                # allow_pickle is spelt out because arrays are passed by name as well.
                np.savez(file, allow_pickle=False, **named)
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            if not path.exists():
                self.discard()
            raise OutputError(
                f"can't write the checkpoint '{self.folder}' ({error.strerror or error}); free "
                "some space or name an output elsewhere"
            ) from error

    def load(self) -> dict[str, np.ndarray] | None:
        """The saved state; None where there is none.

        Raises:
            OutputError: the state is damaged, or belongs to another model, data, recipe or version.
        """
        path = self.folder / f"{self._name}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            found = json.loads(str(arrays.pop(IDENTITY)))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise OutputError(
                f"the checkpoint '{self.folder}' can't be read, or is damaged; leave out --resume "
                "to start anew"
            ) from error
        wanted = json.loads(self._identity)
        different = sorted(k for k in wanted if found.get(k) != wanted[k])
        if different:
            raise OutputError(
                f"the checkpoint '{self.folder}' is of another run (different: "
                f"{', '.join(different)}); repeat the same command, or leave out --resume"
            )
        return arrays

    def discard(self) -> None:
        """Remove the state and its folder."""
        if self.folder.is_dir():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


@contextmanager
def run_folder(checkpoint: Checkpoint | None, resume: bool) -> Iterator[Path]:
    """A temporary folder for one run; the run's checkpoint is removed when it is no longer needed.

    - A run without `resume` first removes an older checkpoint, from which its later stages would
      resume.
    - A run that ends removes its checkpoint. So does a run without `resume` that fails by a user
      error.
    - A run that is stopped keeps it, and so does one whose result was too bad to be written.

    Args:
        checkpoint: None where the run keeps none.
        resume: whether the run resumes from the checkpoint.
    """
    fresh = None if resume else checkpoint
    if fresh is not None:
        fresh.discard()
    try:
        with temporary_folder() as folder:
            yield folder
    except WorseError:
        raise
    except OnnxqError:
        if fresh is not None:
            fresh.discard()
        raise
    if checkpoint is not None:
        checkpoint.discard()


DECAY = 0.95
"""Decay of the running mean of the loss that progress shows."""


@dataclass
class State:
    """The state of a training loop, besides the values and the optimizer.

    Attributes:
        epochs: passes over the samples in all.
        epoch: finished epochs.
        step: finished steps of this epoch.
        rate: factor of the learning rate.
        since: the epoch in which the schedule started.
        loss: running mean over the last steps.
        cut: whether the time limit left out epochs.
        history: the held-out score after each epoch.
        curve: seconds, held-out score and agreement after each epoch, as in `TrainingHistory`.
    """

    epochs: int
    epoch: int = 0
    step: int = 0
    rate: float = 1.0
    since: int = 0
    loss: float = float("nan")
    cut: bool = False
    history: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        """Add the loss of one step to the running mean."""
        first = self.step == 0 or np.isnan(self.loss)
        self.loss = loss if first else DECAY * self.loss + (1 - DECAY) * loss

    def arrays(self) -> Arrays:
        """The state as arrays for a checkpoint."""
        numbers = [
            self.epochs, self.epoch, self.step, self.rate, self.since, self.loss, self.cut
        ]  # fmt: skip
        curve = np.array(self.curve).reshape(-1, 3)
        return {"numbers": np.array(numbers), "history": np.array(self.history), "curve": curve}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore the state from the arrays of `arrays`."""
        epochs, epoch, step, rate, since, loss, cut = arrays["numbers"].tolist()
        self.epochs, self.epoch, self.step = int(epochs), int(epoch), int(step)
        self.rate, self.since, self.loss = float(rate), int(since), float(loss)
        self.cut = bool(cut)
        self.history = arrays["history"].tolist()
        self.curve = [tuple(point) for point in arrays["curve"].tolist()]


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

    @property
    def engine(self) -> str:
        """What computes gradients, 'ort-training' or 'onnx'."""
        return resolve_engine(self.recipe.engine)

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
            "engine": self.engine,
            "layers": hashlib.sha256("\n".join(layers).encode()).hexdigest(),
            "version": __version__,
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
    """The job of these values; files may be named by text, and no progress means silence.

    Raises:
        EngineError: the engine that the recipe asks for is not installed.
    """
    resolve_engine(recipe.engine)
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
