"""Small teachers and students."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.small_graphs import build

TEACHER = """net (float[N, 2, 6, 6] x) => (float[N, 4] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (c)
    g = GlobalAveragePool (r) f = Flatten (g) y = Gemm <transB = 1> (f, h, k)
}"""
TEACHER_WEIGHTS = {"w": (6, 2, 3, 3), "b": (6,), "h": 3 * np.eye(4, 6, dtype=np.float32), "k": (4,)}

STUDENT = """net (float[N, 2, 6, 6] image) => (float[N, 4] scores) {
    c = Conv <pads = [1, 1, 1, 1]> (image, w)
    n = BatchNormalization <epsilon = 0.01> (c, s, b, m, v)
    r = LeakyRelu <alpha = 0.3> (n) d = Conv <pads = [1, 1, 1, 1]> (r, u)
    o = BatchNormalization (d, s, b, m, v) a = Add (r, o)
    g = GlobalAveragePool (a) f = Flatten (g) scores = Gemm <transB = 1> (f, h, k)
}"""
STUDENT_WEIGHTS = {
    "w": (5, 2, 3, 3),
    # An exporter stores what is equal once.
    "s": np.ones(5, np.float32),
    "b": np.zeros(5, np.float32),
    "m": np.zeros(5, np.float32),
    "v": np.ones(5, np.float32),
    "u": (5, 5, 3, 3),
    "h": (4, 5),
    "k": np.zeros(4, np.float32),
}

PLAIN = """net (float[N, 2, 6, 6] x) => (float[N, 4] y) {
    f = Flatten (x) p = MatMul (f, w) q = Add (p, b) r = Relu (q) y = MatMul (r, u)
}"""
PLAIN_WEIGHTS = {"w": (72, 8), "b": (8,), "u": (8, 4)}


def teacher() -> ir.Model:
    return build(TEACHER, TEACHER_WEIGHTS)


def student() -> ir.Model:
    return build(STUDENT, STUDENT_WEIGHTS)


def plain() -> ir.Model:
    return build(PLAIN, PLAIN_WEIGHTS)


def images(count: int = 160) -> np.ndarray:
    """Each with a level of its own in each channel, which a pool does not average away."""
    rng = np.random.default_rng(3)
    levels = 2 * rng.normal(size=(count, 2, 1, 1))
    return (levels + rng.normal(size=(count, 2, 6, 6))).astype(np.float32)


def write_all(folder: Path) -> tuple[Path, Path, Path]:
    """Teacher, student and samples as files."""
    paths = folder / "teacher.onnx", folder / "student.onnx", folder / "x.npz"
    ir.save(teacher(), paths[0])
    ir.save(student(), paths[1])
    np.savez(paths[2], x=images())
    return paths
