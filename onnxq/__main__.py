"""The command `onnxq`, also `python -m onnxq`; Ctrl-C ends it with a sentence at any time."""

from __future__ import annotations

import os
import sys

from onnxq.errors import STOPPED


def start() -> None:
    """Run the command; where Ctrl-C stops it, the exit code is 130."""
    _open_streams()
    try:
        from onnxq.cli import main

        main(prog_name="onnxq")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
    except SystemExit as ended:
        if ended.code != STOPPED:
            raise
    # Else Python would end by the signal wherever that met an `exec`, which makes dataclasses.
    os._exit(STOPPED)


def _open_streams() -> None:
    """Where stdin, stdout or stderr is closed, open nothing in its place.

    The next file would have its number, and what libraries print would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    start()
