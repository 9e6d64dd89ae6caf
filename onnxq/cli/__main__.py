"""`python -m onnxq.cli`, where the command is not on the path."""

from onnxq.cli import main

main(prog_name="onnxq")
