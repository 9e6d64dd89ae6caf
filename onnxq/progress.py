"""Progress: how long work reports its state, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener for stages and steps."""

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def at(self, done: int, text: str = "") -> None:
        """`done` steps of the stage are finished; `text` adds details."""

    def finish(self) -> None:
        """The stage has ended."""


class Silent:
    """A listener that ignores everything."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def at(self, done: int, text: str = "") -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
