"""A checkpoint.

The state of a run on disk, written whole or not at all, read back only by the same run.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxq.errors import OnnxqError, OutputError, WorseError
from onnxq.runtime.session import Arrays
from onnxq.runtime.temporary import temporary_folder
from onnxq.train.held_out import Point

STATE = "state"
IDENTITY = "identity"


def checkpoint_folder(out: Path) -> Path:
    """Where the state of the run that writes `out` is kept: beside it."""
    return out.with_name(f"{out.name}.onnxq-checkpoint")


class Checkpoint:
    """A folder that holds the newest state of one run.

    Args:
        folder: made when the first state is saved.
        identity: what makes runs the same (model, data, recipe, version); a state of another
            run is refused.
        name: of the file in the folder; each stage that keeps a state has its own.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], name: str = STATE) -> None:
        self.folder, self._name = folder, name
        self._fields = dict(identity)
        self._identity = json.dumps(dict(sorted(identity.items())))

    def part(self, name: str) -> Checkpoint:
        """The state of another stage of the same run, beside this one."""
        return Checkpoint(self.folder, self._fields, name)

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the state by these arrays.

        Raises:
            OutputError: there is no space, or the folder can't be written.
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
        """The state, or None where none was saved.

        Raises:
            OutputError: the state is damaged, or belongs to another model, data, recipe or
                version.
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
    """A folder for the time of a run, and the run's checkpoint for as long as it is of use.

    A run that begins anew removes what another has left, from which its later stages would go on,
    and leaves none where it ends with an error of the user's. One that is stopped keeps it, and so
    does one whose result is too bad to be written unasked; one that is done does not.

    Args:
        checkpoint: of the run; None where it keeps none.
        resume: whether it goes on from there.
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
"""Of the mean loss that is shown."""


@dataclass
class State:
    """What a later step depends on besides the values and the optimizer.

    Attributes:
        epochs: passes over the samples in all.
        epoch: those that are over.
        step: steps of this epoch that are over.
        rate: factor of the learning rate.
        since: the epoch that the schedule counts from.
        loss: running mean over the last steps.
        history: the held-out score after each epoch.
        curve: seconds, score and agreement at the end of each epoch, see `Learned`.
    """

    epochs: int
    epoch: int = 0
    step: int = 0
    rate: float = 1.0
    since: int = 0
    loss: float = float("nan")
    history: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        """Take in the loss of one step."""
        first = self.step == 0 or np.isnan(self.loss)
        self.loss = loss if first else DECAY * self.loss + (1 - DECAY) * loss

    def arrays(self) -> Arrays:
        """All of it, for a checkpoint."""
        numbers = [self.epochs, self.epoch, self.step, self.rate, self.since, self.loss]
        curve = np.array(self.curve).reshape(-1, 3)
        return {"numbers": np.array(numbers), "history": np.array(self.history), "curve": curve}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put back what `arrays` gave."""
        epochs, epoch, step, rate, since, loss = arrays["numbers"].tolist()
        self.epochs, self.epoch, self.step = int(epochs), int(epoch), int(step)
        self.rate, self.since, self.loss = float(rate), int(since), float(loss)
        self.history = arrays["history"].tolist()
        self.curve = [tuple(point) for point in arrays["curve"].tolist()]
