from __future__ import annotations

import html.parser
import json
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxq.errors import OutputError
from onnxq.options.recipe import Recipe
from onnxq.plan import make_plan
from onnxq.report.html import score_bars, write_report
from onnxq.report.inspection import LayerRow
from onnxq.report.result import metric_rows, result_fields, result_notes
from onnxq.report.tables import print_layers, print_metrics
from onnxq.verify.metrics import Metrics
from onnxq.verify.result import Result

MODEL = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 3] x) => (float[N, 3] y)
<float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
{ [first] y = MatMul (x, w) }
"""


def result_of(recipe: Recipe | None = None, **metrics: object) -> Result:
    given = {
        "layers": 1,
        "integer_layers": 1,
        "agreement": 0.995,
        "latency_before_ms": 2.0,
        "latency_after_ms": 1.0,
        "kernels": {"first": "QGemm"},
        "sqnr_db": {"y": 33.3},
        "learning": {
            "start_score": 0.04,
            "learned_score": 0.02,
            "epoch": 2,
            "epochs_run": 3,
            "scores": [0.03, 0.02, 0.025],
        },
        **metrics,
    }
    model = ir.from_onnx_text(MODEL)
    plan = make_plan(model, Recipe())
    found = Metrics(1000, 300, **given)  # type: ignore[arg-type]
    return Result(model, None, found, recipe or Recipe(), plan, ["a <note>"])


def test_rows_say_what_changed() -> None:
    rows = {row[0]: row[1:] for row in metric_rows(result_of().metrics)}
    assert rows["size"] == ("1 kB", "300 B", "30.0%")
    assert rows["latency, 1 thread"] == ("2 ms", "1 ms", "0.50 ×")
    assert rows["agreement"][-1] == "99.50 %"
    assert rows["SQNR of y"][-1] == "33.3 dB"
    assert rows["layers in integers"][-1] == "1 of 1"
    assert rows["held-out error"] == ("0.04", "0.02", "epoch 2 of 3")


def test_a_distilled_models_score_has_its_name() -> None:
    learning = {"unit": "KL divergence", "start_score": 0.4, "learned_score": 0.1, "epochs_run": 1}
    rows = {row[0]: row[1:] for row in metric_rows(result_of(learning=learning).metrics)}
    assert rows["held-out KL divergence"][:2] == ("0.4", "0.1")


def test_many_outputs_are_summed_up() -> None:
    metrics = Metrics(1, 1, sqnr_db={f"y{i}": 20.0 + i for i in range(9)})
    names = [row[0] for row in metric_rows(metrics) if row[0].startswith("SQNR")]
    assert names[-1] == "SQNR of 5 more outputs"
    assert len(names) == 5


def test_slower_int8_is_said_with_the_option_for_it() -> None:
    assert not any("slower" in note for note in result_notes(result_of()))
    same = result_of(latency_after_ms=2.005)
    assert not any("slower" in note for note in result_notes(same))
    slow = [n for n in result_notes(result_of(latency_after_ms=3.0)) if "slower" in n]
    assert slow == [
        "int8 is slower than float on this machine (1.50 ×); use --activation-bits none for "
        "integer weights at float speed"
    ]
    weight_only = result_of(Recipe(activation_bits=None), latency_after_ms=3.0)
    assert not any("--activation-bits" in note for note in result_notes(weight_only))


def test_what_did_not_become_an_integer_kernel_is_named() -> None:
    notes = result_notes(result_of(kernels={"first": "MatMul"}, float_nodes=["sine (Sin)"]))
    assert any("'first'" in note or ": first" in note for note in notes)
    assert any("sine (Sin)" in note for note in notes)


def test_json_has_everything(tmp_path: Path) -> None:
    fields = result_fields(result_of(), Path("a.onnx"), Path("b.onnx"))
    assert fields["ratio"] == 0.3
    assert fields["figures"]["latency_after_ms"] == 1.0
    assert fields["recipe"]["weight_bits"] == 8
    json.dumps(fields)


class Tags(html.parser.HTMLParser):
    """Checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert "src" not in dict(attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    curve = {"minutes": [1.0, 2.0], "scores": [0.03, 0.02], "agreement": [97.0, 98.0]}
    write_report(folder, Path("a.onnx"), Path("b.onnx"), result_of(curve=curve))
    text = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    # A bar for the start and each epoch, and one for the layer, each of two parts.
    assert tags.seen.count("rect") == 2 * (4 + 1)
    assert "a &lt;note&gt;" in text
    assert "Held-out error, by minutes of training:" in text
    assert "Held-out agreement, percent, by minutes of training:" in text
    assert tags.seen.count("polyline") == 2
    assert json.loads((folder / "report.json").read_text())["ratio"] == 0.3


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Can't write the report"):
        write_report(tmp_path / "file" / "report", Path("a"), Path("b"), result_of())


def test_bars_are_shares_of_the_longest() -> None:
    assert [bar.share for bar in score_bars([0.4, 0.2])] == [1, 0.5]
    assert score_bars([]) == []


def test_the_bar_of_the_exported_numbers_is_marked() -> None:
    bars = score_bars([0.4, 0.2, 0.3], kept=1)
    assert [bar.name for bar in bars] == ["start", "epoch 1 (kept)", "epoch 2"]
    assert [bar.inner for bar in bars] == [0, 0.5, 0]


def test_tables_keep_brackets_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(Metrics(10, 5, sqnr_db={"a[bold]": 30.0}))
    row = LayerRow("layer[0]/x", "Conv", 9, 36, 9, 8, "weight-only", "ConvTranspose [x]")
    print_layers([row])
    printed = capsys.readouterr().out
    assert "a[bold]" in printed
    assert "layer[0]/x" in printed
    assert "1 layers, 0 on integer kernels; weights 36 B -> 9 B" in printed


def test_a_search_is_shown_with_its_target_and_its_trials(tmp_path: Path) -> None:
    trial = {"bytes": 300, "error": 0.01, "drop": 0.2, "drop_error": 0.1, "expected_drop": 0.3}
    search = {
        "max_drop": 0.5,
        "max_size": None,
        "met": True,
        "measure": "kl",
        "points_per_nat": 30.0,
        "settings": {"first": "K=16"},
        "trials": [trial, {**trial, "bytes": 400, "expected_drop": 0.1}],
        "frontier": [{"bytes": 200, "error": 0.1, "drop": 3.0}, {"bytes": 500, "drop": 0.01}],
    }
    result = result_of(search=search, kl=0.01)
    rows = {row[0]: row[1:] for row in metric_rows(result.metrics)}
    assert rows["target of the search"] == ("", "0.5 points", "met, 2 trials")
    assert rows["drop expected by divergence, points"][-1] == "0.30"
    write_report(tmp_path, Path("m.onnx"), Path("o.onnx"), result)
    page = (tmp_path / "report.html").read_text()
    assert "<polyline" in page and "K=16" in page
    assert "300 B, 0.20 by decisions" in page
    sized = result_of(search={**search, "max_drop": None, "max_size": 2000, "met": False})
    rows = {row[0]: row[1:] for row in metric_rows(sized.metrics)}
    assert rows["target of the search"] == ("", "2 kB", "not met, 2 trials")


def test_an_epoch_without_a_finite_score_is_worse_than_all() -> None:
    bars = score_bars([0.5, None, 0.25], kept=2)
    assert [bar.text for bar in bars] == ["0.5000", "not finite", "0.2500"]
    assert [bar.share for bar in bars] == [1.0, 1.0, 0.5]
