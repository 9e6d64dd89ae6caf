"""Names that are not taken yet."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Gives each name once.

    Args:
        taken: those that are given already.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def claim(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, … where that is taken; taken from now on."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
