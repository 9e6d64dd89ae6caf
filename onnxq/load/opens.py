"""Whether ONNX Runtime opens a model, tried in a child process, which a crash may end."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.load.read import file_bytes
from onnxq.numerics.distances import Outputs
from onnxq.runtime.isolation import SECONDS, Crash, isolated
from onnxq.runtime.large_weights import is_large, weight_bytes
from onnxq.runtime.session import Feeds, as_session_takes, not_opened, open_session, serialized

logger = logging.getLogger(__name__)

MOST = 2**30
"""Bytes of a model above which it is opened in this process: twice would take too long."""

RUN_SECONDS = 5.0
"""After which a model's run is stopped: it has not crashed."""

BYTES_PER_SECOND = 2**22
"""What a model may take to open, at the slowest."""

_OPENED: set[bytes] = set()
"""Digests of what has been opened in a child process."""


def check_opens(model: ir.Model | Path, name: str) -> None:
    """Raises ModelError where ONNX Runtime can't open a model, or the file of one.

    Args:
        model: the model to try.
        name: its name in the error message.
    """
    large = (file_bytes(model) if isinstance(model, Path) else weight_bytes(model)) > MOST
    try:
        if large:
            open_session(model, optimise=False)
        else:
            _try(model)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        how = "crashes on" if isinstance(error, Crash) else "can't open"
        raise not_opened(f'the model "{name}"', error, how) from error


def _try(model: ir.Model | Path) -> None:
    """Open a model in a child process; each content is tried once."""
    data: bytes | Path = model if isinstance(model, Path) else serialized(model)
    content = os.fsencode(data) + data.read_bytes() if isinstance(data, Path) else data
    digest = hashlib.sha256(content).digest()
    if digest not in _OPENED:
        large = not isinstance(model, Path) and is_large(model)
        seconds = SECONDS + RUN_SECONDS + len(content) / BYTES_PER_SECOND
        isolated(_open, data, large, seconds=seconds)
        _OPENED.add(digest)


def _open(model: bytes | Path, large: bool) -> None:
    """Open a model without optimization, then with it, and run it.

    Only the first has to succeed. The optimizer refuses some sound models whose nodes have no
    names, which they get later, and not every model can compute with zeros.
    """
    session = open_session(model, optimise=False, prepack=not large)
    try:
        session = open_session(model, optimise=True, prepack=not large)
        _run(session)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        logger.debug("the optimiser refuses the model, or it does not run: %s", error)


def _run(session: ort.InferenceSession) -> None:
    """Run a model once, if the sizes of its inputs are known; a long run is stopped."""
    shapes = [each.shape for each in session.get_inputs()]
    if any(not isinstance(dim, int) for shape in shapes for dim in shape[1:]):
        # Some kernels crash on sizes that no sample has.
        return
    options = ort.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(RUN_SECONDS, setattr, (options, "terminate", True))
    timer.start()
    session.run(None, {each.name: _zeros(each) for each in session.get_inputs()}, options)


def _zeros(taken: ort.NodeArg) -> np.ndarray:
    dtype = ir.DataType[taken.type.removeprefix("tensor(").removesuffix(")").upper()].numpy()
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in taken.shape], dtype)


def run_model(model: ir.Model | Path, feeds: Sequence[Feeds], *, optimise: bool) -> list[Outputs]:
    """The outputs of the model for each of the feeds, in the order of the graph."""
    session = open_session(model, optimise=optimise)
    return [list(session.run(None, as_session_takes(session, feed))) for feed in feeds]
