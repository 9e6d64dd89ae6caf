"""The command `onnxq`, and `python -m onnxq`: Ctrl-C ends it in a sentence from the beginning."""

from __future__ import annotations

import os
import signal
import sys

from onnxq.errors import STOPPED


def start() -> None:
    """Run the command; while its libraries load, Ctrl-C ends the process at once."""
    _open_streams()
    # A shell's background job ignores Ctrl-C, and goes on doing so.
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if catches:
        signal.signal(signal.SIGINT, _stop)
    # Seconds of other libraries.
    from onnxq.cli import main

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main(prog_name="onnxq")


def _open_streams() -> None:
    """Where stdin, stdout or stderr is closed, open nothing in its place.

    The next file would have its number, and what libraries print would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _stop(*_: object) -> None:
    """Raise nothing: a module that is interrupted while it loads says that it is broken."""
    os.write(2, b"\nstopped\n")
    os._exit(STOPPED)


if __name__ == "__main__":
    start()
