"""How long work reports where it stands, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener of stages and steps."""

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def at(self, done: int, text: str = "") -> None:
        """`done` steps of the stage are over; `text` says how it goes."""

    def finish(self) -> None:
        """The stage is over."""


class Silent:
    """A listener that says nothing."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def at(self, done: int, text: str = "") -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
