"""The statistics that BatchNormalization keeps of the data that a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.normalise.batch_norm import batch_norm_refusal
from onnxq.normalise.facts import constant, float_attribute, is_op, rank

FOLDED = (
    "the model has no BatchNormalization whose statistics made images could match: its exporter "
    "folded it, or it never had any; torch.onnx.export keeps it with dynamo=False and "
    "training=TrainingMode.PRESERVE (of a model in eval mode), onnxsim with skip_fuse_bn=True"
)
"""A note for the user of a model without statistics."""


@dataclass(frozen=True)
class BatchNorm:
    """The running statistics of one BatchNormalization.

    Attributes:
        name: of the node.
        tensor: the tensor that enters it, (samples, channels, ...).
        rank: the number of dimensions of that tensor.
        mean: the running mean, float32 `(channels,)`.
        variance: the running variance, float32 `(channels,)`.
        epsilon: what the node adds to the variance.
    """

    name: str
    tensor: str
    rank: int
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float


def find_batch_norms(model: ir.Model) -> list[BatchNorm]:
    """The BatchNormalization nodes of an unfolded model, in graph order.

    Nodes in training mode, with parameters that are computed, or after a tensor of unknown rank
    have no statistics to match and are passed over.
    """
    found = []
    for node in model.graph:
        if not is_op(node, "BatchNormalization") or batch_norm_refusal(node) is not None:
            continue
        source, dimensions = node.inputs[0], rank(node.inputs[0])
        mean, variance = (constant(node.inputs[index]) for index in (3, 4))
        assert source is not None and mean is not None and variance is not None
        if dimensions is None or dimensions < 2:
            continue
        found.append(
            BatchNorm(
                str(node.name),
                str(source.name),
                dimensions,
                mean.astype(np.float32),
                variance.astype(np.float32),
                float_attribute(node, "epsilon", 1e-5),
            )
        )
    return found
