"""Shares of a loss, means over corruptions, and the check that a document's tables equal their files."""

import importlib.util
from pathlib import Path

import pytest

from hybrid.conditions.corruptions import CORRUPTIONS
from hybrid.paper.experiments import SCALES, Experiments
from hybrid.paper.networks import CONTRIBUTIONS
from hybrid.paper.results import CATEGORIES, category_rows, difference_rows, read_rows, recovered_rows, table_lines
from hybrid.paper.tables import PARTS
from snn.data_source import DataSource
from snn.runtime.outputs import write_csv

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("check_results", ROOT / "docs" / "check_results.py")
check_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_results)


def row(model, condition, *values, table="table2"):
    return {
        "table": table, "model": model, "factor": "", "condition": condition, "ours_percent": sum(values) / len(values),
        "deviation_percent": 0.5, "values_percent": " ".join(map(str, values)), "paper_percent": "",
        "difference_percent": "",
    }  # fmt: skip


ROWS = [
    row("baseline b", "clean", 70.0, 74.0), row("baseline b", "awgn:40", 69.0, 73.0),
    row("baseline b", "awgn:15", 50.0, 64.0), row("safe b", "clean", 69.0, 73.0),
    row("safe b", "awgn:40", 69.0, 73.0), row("safe b", "awgn:15", 65.0, 70.0),
]  # fmt: skip


def test_shares_of_the_loss():
    (found,) = recovered_rows(ROWS, "baseline b")
    assert (found["model"], found["condition"], found["baseline_loss_points"]) == ("safe b", "awgn:15", 15.0)
    # 15 of 20 points and 6 of 10: on average 10.5 of 15; the seeds miss 70 % of their losses by +1 and -1.
    assert found["ours_percent"] == 70.0
    assert found["deviation_percent"] == pytest.approx(100 * 2**0.5 / 15, abs=1e-3)
    assert table_lines([found])[-1] == "| safe b | 70 ± 9 |"


def test_contributions_are_differences_seed_by_seed():
    (found,) = difference_rows(ROWS, [("safety", "safe b", "baseline b")], ["awgn:15"])
    assert (found["ours_percent"], found["compared"]) == (10.5, "safe b less baseline b")
    # +15 and +6.
    assert table_lines([found])[0] == "| contribution | `awgn:15` |"
    assert table_lines([found])[-1] == "| safety | +10.5 ± 6.4 |"
    (found,) = difference_rows(ROWS, [("safety", "safe b", "baseline b")], ["clean"])
    assert table_lines([found])[-1] == "| safety | -1.0 ± 0.0 |"


def test_contributions_are_of_the_ablations():
    plan = Experiments(DataSource("digits"), SCALES["small"])
    names = {cell.line.name for cell in PARTS["ablations"].cells(plan)}
    assert {name for _, *pair in CONTRIBUTIONS for name in pair} <= names


def test_categories_hold_all_corruptions_and_are_means_seed_by_seed():
    assert [name for names in CATEGORIES.values() for name in names] == list(CORRUPTIONS)
    rows = [
        row("m", f"corruption:{name},{severity}", 10.0 * number + severity, 20.0 * number, table="corruptions")
        for number, name in enumerate(CORRUPTIONS)
        for severity in (1, 3)
    ]
    found = {r["condition"]: r for r in category_rows(rows)}
    assert list(found) == ["mean", *CATEGORIES]
    assert found["noise"]["ours_percent"] == (12 + 20) / 2
    assert found["mean"]["ours_percent"] == (72 + 140) / 2
    assert found["mean"]["deviation_percent"] == pytest.approx(68 / 2**0.5, abs=1e-3)


@pytest.fixture
def document(tmp_path):
    (tmp_path / "results").mkdir()
    write_csv(tmp_path / "results" / "table2.csv", ROWS)
    file = tmp_path / "results.md"
    file.write_text("# Results\n\nBefore.\n\n<!-- results/table2.csv -->\n\n\nAfter.\n")
    return file


def test_a_document_with_other_numbers_fails(document, capsys):
    assert check_results.main([], document) == 1
    assert check_results.main(["--write"], document) == 0
    assert check_results.main([], document) == 0
    text = document.read_text()
    assert "| safe b | 71.0 ± 0.5 | 71.0 ± 0.5 | 67.5 ± 0.5 |\n\nAfter." in text
    document.write_text(text.replace("67.5", "68.5"))
    assert check_results.main([], document) == 1
    assert "table2.csv: the document's table differs" in capsys.readouterr().out
    document.write_text(text + "\n| a |\n|---|\n| 1 |\n")
    assert check_results.main([], document) == 1
    document.write_text(text)
    write_csv(document.parent / "results" / "table9.csv", ROWS)
    assert check_results.main([], document) == 1
    assert "table9.csv: the document has no table" in capsys.readouterr().out


def test_rows_read_again_make_the_same_table(document):
    assert table_lines(read_rows(document.parent / "results" / "table2.csv")) == table_lines(ROWS)


def test_the_published_tables_equal_their_files(capsys):
    assert check_results.main([]) == 0, capsys.readouterr().out
