"""Write docs/cli.md and the tables of options in docs/recipes.md.

Run `python -m tools.make_cli_docs` after a change of the command line; a test compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from onnxq.cli import main
from onnxq.options.option import Option
from onnxq.options.table import RECIPE, SETTINGS

DOCS = Path(__file__).parents[1] / "docs"
PATH, RECIPES = DOCS / "cli.md", DOCS / "recipes.md"

WIDTH = 90

INTRODUCTION = """\
# The command line

This file is made by `python -m tools.make_cli_docs`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a user error, or a result that is worse than the original; one sentence on stderr says so |
| 2 | wrong usage |
| 130 | stopped by Ctrl-C; a checkpoint is kept, and the sentence says how to resume |

Tables and metrics go to stdout, progress and notes to stderr. Where stderr is not a terminal,
progress is shown with `-v` only. The last line on stdout of a successful `compress` or `distill`
names the file and the size ratio. With `--json` the only line is JSON.

A flag takes precedence over the recipe file of `--recipe`, and that over the default.

**When nothing is written.** `compress` writes no file that is no smaller than the original, and
no broken one. A result is broken where on held-out samples

- a classifier makes the original's decision on under 50 % of them, or
- the worst float output of any other model has an SQNR under 10 dB (3 dB where fewer than 8 bits
  were asked for).

Under 15 dB a note warns. `--allow-worse` writes the file all the same. A broken result is also
written, with a note, where a method was named (`--learn none`, `--calibration max`,
`--granularity per-tensor`, `--no-fallback`, ...).

A layer that would take no fewer bytes as integers stays float, unless the recipe has settings for
it. `inspect` and `--dry-run` show the reason.

`distill` writes no broken student: one that makes the teacher's decision on under 50 % of the
held-out samples or, without decisions, has an error of over 70 % of the teacher's outputs. It is
written, with a note, with `--allow-worse` or where `--epochs`, `--max-minutes` or `--lr` was given.
"""

EXAMPLES = {
    "compress": """\
onnxq compress sample_models/digits_resnet.onnx --data sample_models/digits/unlabelled
onnxq compress model.onnx --data images --mean .485,.456,.406 --std .229,.224,.225 --report out
onnxq compress model.onnx --data-free --mean .485,.456,.406 --std .229,.224,.225 --report out
onnxq compress model.onnx --dry-run --exclude Gemm""",
    "inspect": """\
onnxq inspect model.onnx
onnxq inspect model-onnxq.onnx --json
onnxq inspect model.onnx --json | jq '.contents[] | select(.quantized | not)'""",
    "evaluate": """\
onnxq evaluate model-onnxq.onnx --data labelled --reference model.onnx
onnxq evaluate model-onnxq.onnx --data unlabelled.npz --reference model.onnx""",
    "compare": """\
onnxq compare model.onnx model-onnxq.onnx --data images
onnxq compare model.onnx model-onnxq.onnx --data samples.npz --samples 64 --json""",
    "benchmark": """\
onnxq benchmark model.onnx model-onnxq.onnx
onnxq benchmark speech.onnx --shape samples=1,16000 --threads 2
onnxq benchmark model.onnx --data images""",
    "sensitivity": """\
onnxq sensitivity model.onnx --data images --report out
onnxq sensitivity model.onnx --data images --activation-bits none --exclude Gemm -o table.json""",
    "distill": """\
onnxq distill large.onnx small.onnx --data images -o small-distilled.onnx
onnxq distill large.onnx small.onnx --data-free --init random
onnxq distill large.onnx small.onnx --data images --epochs 100 --lr 0.001 --augment flip""",
}


MORE = {
    "inspect": """\
The first table lists the layers. It gives the reason where a layer stays float, and says where a
layer reads the weights of an earlier one.

The second table accounts for every byte of the file: weights and biases by operator, tables of
Gather, parameters of other nodes, constants, sub-graphs and functions, external data, tensors that
nothing reads, and the graph itself. Weights that several layers read count once. The sum is the
size of the file with its external data. In JSON it is `contents`, with `what`, `tensors`,
`bytes`, `quantized`, `largest` (a name) and `reason` for each kind.
""",
}
"""Text after the help text and the examples of a command."""


def cli_docs() -> str:
    """The whole text of docs/cli.md."""
    settings = {"terminal_width": WIDTH, **main.context_settings, "max_content_width": WIDTH}
    with click.Context(main, info_name="onnxq", **settings) as root:
        parts = [INTRODUCTION, _section("onnxq", main.get_help(root), None)]
        for name in main.list_commands(root):
            command = main.get_command(root, name)
            with click.Context(command, parent=root, info_name=name) as context:
                parts.append(_section(f"onnxq {name}", command.get_help(context), EXAMPLES[name]))
            parts += [MORE[name]] if name in MORE else []
    return "\n".join(parts)


def _section(name: str, text: str, examples: str | None) -> str:
    shown = "" if examples is None else f"\nExamples:\n\n```\n{examples}\n```\n"
    return f"## {name}\n\n```\n{text}\n```\n{shown}"


def recipe_docs(text: str) -> str:
    """The text of docs/recipes.md with its tables made anew."""
    options = ["| option | values | default | meaning |", "|---|---|---|---|"]
    options += [_row(option) for option in RECIPE.values() if option.name != "layers"]
    fields = ["| field | meaning |", "|---|---|"]
    for meaning in dict.fromkeys(option.layers for option in SETTINGS.values()):
        names = [f"`{name}`" for name, option in SETTINGS.items() if option.layers == meaning]
        fields.append(f"| {', '.join(names)} | {meaning} |")
    for name, lines in (("options", options), ("fields", fields)):
        made = f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _: made, text, flags=re.DOTALL)  # noqa: B023
    return text


def _row(option: Option) -> str:
    default = f"`{json.dumps(option.kind.to_toml(option.default))}`"
    shown = option.unset if option.default is None else default
    meaning = f"{option.help} {option.more}".strip()
    return f"| `{option.name}` | {option.kind.described} | {shown} | {meaning} |"


if __name__ == "__main__":
    PATH.write_text(cli_docs(), encoding="utf-8")
    RECIPES.write_text(recipe_docs(RECIPES.read_text(encoding="utf-8")), encoding="utf-8")
