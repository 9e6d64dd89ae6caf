"""What the documents say exists, and speaks of the project alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

import onnxq
from onnxq.cli import main
from onnxq.data.preprocess import load_preprocess
from onnxq.options.option import VERBS
from onnxq.options.recipe import load_recipe
from onnxq.options.table import RENAMED

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_OURS = (".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "build")


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_begins_with_a_sentence_and_two_commands() -> None:
    assert len(blocks(ROOT / "README.md", "sh")) == 2
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    # A first screen.
    assert [i for i, line in enumerate(lines) if line.startswith("```")][3] < 40


def test_files_that_the_commands_of_the_readme_name_exist() -> None:
    text = "".join(blocks(ROOT / "README.md", "sh") + blocks(ROOT / "README.md", "python"))
    named = re.findall(r"\b(?:sample_models|tools|tests|docs)/[\w./-]+", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def command_named(name: str) -> click.Command:
    return main.get_command(click.Context(main), name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_in_documents_exist(path: Path) -> None:
    known = {
        flag
        for command in (main, *map(command_named, VERBS))
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    prose = re.sub(r"^```sh\n.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    older = {f"--{prefix}{name}" for name in RENAMED for prefix in ("", "no-")}
    # Of other tools, in the section on development; and click's own.
    assert used - known - older - {"--check", "--help", "--version"} == set()


def test_every_command_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in VERBS:
        assert f"(docs/cli.md#onnxq-{name})" in text


def test_recipes_and_preprocessing_in_documents_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "block.toml"
    examples = blocks(ROOT / "README.md", "toml") + blocks(ROOT / "docs" / "recipes.md", "toml")
    assert len(examples) >= 4
    for text in examples:
        file.write_text(text, encoding="utf-8")
        if "mean" in tomllib.loads(text):
            load_preprocess(file)
        else:
            load_recipe(file)


def test_the_architecture_states_the_arrows_that_import_linter_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*)", text.split("\n## Arrows\n")[1].split("\n## ")[0], re.MULTILINE)
    stated = [re.findall(r"`(\w+)`", row) for row in rows]
    assert stated == [re.findall(r"onnxq\.(\w+)", layer) for layer in contract["layers"]]


def test_the_architecture_names_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / "onnxq").glob("*/__init__.py")]
    assert folders
    assert [name for name in folders if f"`{name}/`" not in text] == []


def test_files_that_the_documents_name_exist() -> None:
    for path in DOCUMENTS:
        named = re.findall(r"`(?:onnxq/)?(\w+/[\w/]+\.py)`", path.read_text(encoding="utf-8"))
        places = [(ROOT / name, ROOT / "onnxq" / name) for name in named]
        assert [a.name for a, b in places if not (a.exists() or b.exists())] == [], path.name


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert onnxq.__version__ == project["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {project['version']}\n")[1].split("\n## ")[0]
    entries = re.split(r"^- ", section.strip(), flags=re.MULTILINE)[1:]
    assert entries
    assert [entry for entry in entries if not re.search(r"\(#\d+\)\s*$", entry)] == []


def test_no_file_names_the_place_where_it_was_written() -> None:
    # Written in two parts, so that this file does not name them either.
    words = ["/work" + "/", ".lib" + "rary", "/roo" + "t/", "/tm" + "p/"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in project_texts()
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def project_texts() -> list[Path]:
    kinds = {".py", ".md", ".toml", ".sh", ".j2", ".json", ""}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and path.suffix in kinds
        and not any(part.startswith(NOT_OURS) for part in path.relative_to(ROOT).parts)
        and "egg-info" not in str(path)
    ]
