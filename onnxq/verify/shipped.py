"""The size of a model as it is shipped: compressed by deflate, as in zip and gzip.

Thonglek et al. count compressed bytes: skewed indices then take less than their own bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx_ir as ir

from onnxq.session import PROTOBUF_LIMIT

CHUNK = 2**24
LEVEL = 6


def deflated_size(chunks: Iterable[bytes | memoryview]) -> int:
    """Bytes of one deflate stream of all chunks."""
    stream = zlib.compressobj(LEVEL)
    return sum(len(stream.compress(chunk)) for chunk in chunks) + len(stream.flush())


def shipped_files(paths: Iterable[Path]) -> int:
    """Compressed bytes of some files, each by itself."""
    return sum(deflated_size(_read(path)) for path in paths)


def shipped_model(model: ir.Model) -> int:
    """Compressed bytes of a model in memory as it will be written."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    if sum(each.nbytes for each in tensors if each is not None) < PROTOBUF_LIMIT:
        return deflated_size([ir.to_proto(model).SerializeToString(deterministic=True)])
    return deflated_size(each.tobytes() for each in tensors if each is not None)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
