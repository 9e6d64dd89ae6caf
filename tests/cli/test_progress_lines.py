"""Progress as lines: what stages say where stderr is no terminal."""

from __future__ import annotations

import pytest

from onnxq.cli import start as start_module
from onnxq.cli.start import Lines


def test_a_stage_says_something_every_few_seconds(monkeypatch: pytest.MonkeyPatch, capsys):
    now = iter([100.0, 100.5, 101.9, 102.1, 103.0, 110.0])
    monkeypatch.setattr(start_module.time, "monotonic", lambda: next(now))
    lines = Lines()
    lines.start("learn", 10)
    for done in range(5):
        lines.at(done, f"error {done}")
    lines.at(5)
    lines.finish()
    said = capsys.readouterr().err.splitlines()
    assert said == ["learn", "learn: 0/10 error 0", "learn: 3/10 error 3"]
