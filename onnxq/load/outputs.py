"""What a model gives for some feeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxq.numerics.equality import Outputs
from onnxq.session import Feeds, as_session_takes, open_session


def run_model(model: ir.Model | Path, feeds: Sequence[Feeds], *, optimise: bool) -> list[Outputs]:
    """The outputs of the model for each of the feeds, in the order of the graph."""
    session = open_session(model, optimise=optimise)
    return [list(session.run(None, as_session_takes(session, feed))) for feed in feeds]
