"""Shares of a loss, means over corruptions, and the check that a document's numbers equal those of its files."""

import importlib.util
import re
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
    assert check_results.main([], [document]) == 1
    assert check_results.main(["--write"], [document]) == 0
    assert check_results.main([], [document]) == 0
    text = document.read_text()
    assert "| safe b | 71.0 ± 0.5 | 71.0 ± 0.5 | 67.5 ± 0.5 |\n\nAfter." in text
    document.write_text(text.replace("67.5", "68.5"))
    assert check_results.main([], [document]) == 1
    assert "table2.csv: the document's table differs" in capsys.readouterr().out
    document.write_text(text + "\n| a |\n|---|\n| 1 |\n")
    assert check_results.main([], [document]) == 1
    document.write_text(text)
    write_csv(document.parent / "results" / "table9.csv", ROWS)
    assert check_results.main([], [document]) == 1
    assert "table9.csv: no document has a table" in capsys.readouterr().out


def test_a_table_stands_in_any_of_several_documents(document, capsys):
    other = document.with_name("search.md")
    other.write_text("# Search\n\n<!-- results/table9.csv -->\n\n")
    write_csv(document.parent / "results" / "table9.csv", ROWS[:1])
    documents = [document, other]
    assert check_results.main(["--write"], documents) == 0
    assert "2 tables and 0 numbers" in capsys.readouterr().out
    assert "| baseline b | 72.0 ± 0.5 |" in other.read_text()
    other.write_text(other.read_text().replace("72.0", "73.0") + "1.0<!-- table2: safe -->\n")
    assert check_results.main([], documents) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "search.md: results/table9.csv: the document's table differs from it"
    assert lines[1].startswith("search.md: line 9: table2 has 0 rows")
    assert len(lines) == 2


def test_rows_read_again_make_the_same_table(document):
    assert table_lines(read_rows(document.parent / "results" / "table2.csv")) == table_lines(ROWS)


DIFFERENCE = [
    {"table": "contributions", "model": "safety, not none", "factor": "", "condition": "awgn:15",
     "ours_percent": 10.5, "deviation_percent": 6.364, "paper_percent": "", "difference_percent": ""},
]  # fmt: skip


@pytest.fixture
def prose(document):
    """A function: the lines that the check reports for a document of these lines, from line 3 on."""
    paper = {"clean": 91.3, "awgn:40": "", "awgn:15": 18.5}
    write_csv(
        document.parent / "results" / "table2.csv",
        [r | {"paper_percent": paper[r["condition"]] if r["model"] == "baseline b" else ""} for r in ROWS],
    )
    write_csv(document.parent / "results" / "contributions.csv", DIFFERENCE)

    def reported(*lines: str) -> list[str]:
        document.write_text("\n".join(["# Results", "", *lines, ""]))
        return check_results.prose_differences(document.read_text(), document.parent)

    return reported


@pytest.mark.parametrize(
    ("number", "comment"),
    [
        # Seeds of safe: 65, 70; of the baseline: 50, 64. Deviations of rows are 0.5, whatever their values.
        ("67.5", "table2: safe b | awgn:15"),
        ("67.50", "table2: safe | awgn:15"),
        ("68", "table2: safe | awgn:15"),
        ("67.5 ± 0.5", "table2: safe | awgn:15"),
        ("**67.5**", "table2: safe | awgn:15"),
        # 15 and 6.
        ("10.5", "table2: safe - baseline | awgn:15"),
        ("+10.5 ± 6.4", "table2: safe - baseline | awgn:15"),
        ("-10.500 ± 6.364", "table2: baseline - safe | awgn:15"),
        ("+10.5 ± 6.4", "contributions: safety, not none | awgn:15"),
        ("-10.5 ± 6.4", "- contributions: safety, not none | awgn:15"),
        # 70 - 50 = 20 and 74 - 64 = 10.
        ("15.0 ± 7.1", "table2: baseline | clean - baseline | awgn:15"),
        ("0.0", "table2: safe | clean - table2: safe | awgn:40"),
        ("18.5", "paper table2: baseline | awgn:15"),
        ("72.8", "paper table2: baseline | clean - paper baseline | awgn:15"),
        # 57 of ours: 50 and 64, less 18.5.
        ("38.5 ± 9.9", "table2: baseline - paper baseline | awgn:15"),
        ("0.50", "deviation table2: safe | clean"),
        # Means 71, 67.5 and 57; differences -1 and 10.5.
        ("71.0", "max table2: safe | clean; safe | awgn:15; baseline | awgn:15"),
        ("57.0", "min table2: safe; baseline | awgn:15"),
        # The paper's own tables.
        ("87.88", "paper-table2: safe mobilenet_v2 | awgn:20"),
        ("89.2", "paper-table5: safe mobilenet_v2 | salt-pepper:0.05"),
        ("7.85", "paper-table3: safe mobilenet_v2 - baseline mobilenet_v2 | awgn:5"),
        ("-1.0 ± 0.0", "min table2: safe - baseline | awgn:15; safe - baseline | clean"),
    ],
)
def test_numbers_of_the_prose_are_computed_from_the_files(prose, number, comment):
    assert prose("<!-- prose checked -->", f"It has {number}<!-- {comment} --> points.") == []
    digits = re.search(r"[+-]?[\d.]+", number)[0]
    wrong = number.replace(digits, re.sub(r"\d$", lambda last: str((int(last[0]) + 1) % 10), digits))
    (line,) = prose("Text", f"It has {wrong}<!-- {comment} --> points.")
    assert line.startswith("line 4: found ")
    assert line.endswith(f"expected {digits} ({comment})")


def test_a_wrong_sign_and_a_wrong_deviation_are_found(prose):
    comment = "table2: baseline - safe | awgn:15"
    assert prose(f"-10.5<!-- {comment} -->, 10.5<!-- {comment} -->") == [
        f"line 3: found 10.5, expected -10.5 ({comment})"
    ]
    # A number and its deviation on two lines, and a comment on two.
    assert prose("-10.5 ±", "6.3<!-- table2: baseline -", "safe | awgn:15 -->") == [
        f"line 4: found 6.3, expected 6.4 ({comment})"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.0<!-- table9: safe | awgn:15 -->", "no results/table9.csv"),
        ("1.0<!-- paper-table2: safe mobilenet_v2 | awgn:13 -->", "paper-table2 has 0 rows"),
        ("1.0 ± 1.0<!-- paper-table2: safe mobilenet_v2 | clean -->", "there is no deviation"),
        ("1.0<!-- table2: safe | awgn:12 -->", 'table2 has 0 rows of safe b under "awgn:12"; conditions: clean, '),
        ("1.0<!-- table2: sfe | awgn:15 -->", 'table2 has no model "sfe"; it has safe b'),
        ("1.0<!-- table2: safe -->", 'table2 has 0 rows of safe b under ""'),
        ("1.0<!-- safe | awgn:15 -->", "expected TABLE: MODEL | CONDITION"),
        ("1.0<!-- -->", "expected TABLE: MODEL | CONDITION"),
        ("1.0<!-- paper table2: safe | awgn:15 -->", "has no paper_percent of safe b"),
        ("1.0<!-- error table2: safe | awgn:15 -->", "has no standard_error_percent of safe b"),
        ("1.0<!-- contributions: safety, not none - table2: safe | awgn:15 -->", "has no values_percent"),
        ("18.5 ± 1.0<!-- paper table2: baseline | awgn:15 -->", "there is no deviation"),
        ("67.5<!-- table2: safe; baseline | awgn:15 -->", "needs max or min"),
        ("67.5 <!-- table2: safe | awgn:15 -->", "no number stands directly before"),
        ("10.5<!-- table2: safe\n- baseline | awgn:15 -->", "break elsewhere"),
    ],
)
def test_a_comment_that_means_nothing_is_named_with_its_line(prose, text, reason):
    (line,) = prose("Text", text)
    assert line.startswith("line 4: ")
    assert reason in line
    assert "\n" not in line


def test_a_short_name_of_two_networks_is_refused(prose, document):
    write_csv(
        document.parent / "results" / "table3.csv", [row("safe b", "clean", 1.0, 3.0), row("safe c", "clean", 2.0)]
    )
    (line,) = prose("2.0<!-- table3: safe | clean -->")
    assert "it has safe b or safe c" in line
    (line,) = prose("2.0<!-- table3: safe b - safe c | clean -->")
    assert "numbers of seeds differ: [1, 2]" in line


def test_means_of_corruptions_are_paired_over_seeds(prose, document):
    rows = [
        row(model, f"corruption:{name},1", first + number, last, table="corruptions")
        for model, first, last in (("safe", 20.0, 40.0), ("mu", 30.0, 35.0))
        for number, name in enumerate(CORRUPTIONS)
    ]
    write_csv(document.parent / "results" / "corruptions.csv", rows)
    # Seeds: 20 + 1 and 40 over the three noises, 30 + 1 and 35: differences of -10 and +5.
    assert prose("-2.5 ± 10.6<!-- corruptions: safe - mu | noise -->, 30.5<!-- corruptions: safe | noise -->") == []
    assert (
        prose("33.5<!-- corruptions: safe | mean -->, 30.0<!-- corruptions: safe | corruption:gaussian_noise,1 -->")
        == []
    )


def test_numbers_without_a_comment_are_found_once_the_document_says_so(prose):
    lines = [
        "A 12.5 and -3.4 ± 0.6, version 0.4.1, 32 images, [of 2.10](a/1.5), `0.25`, file-1.5.csv and `0.3",
        "0.4`.",
        "",
        "| 7.5 |",
        "```",
        "8.5",
        "```",
        "67.5<!-- table2: safe | awgn:15 --> of 99.5%.",
    ]
    assert prose(*lines) == []
    without = "has no comment that says where it comes from"
    found = [
        f"line {line}: {number} {without}"
        for line, number in [(4, "12.5"), (4, "-3.4 ± 0.6"), (4, "2.10"), (11, "99.5")]
    ]
    assert prose("<!-- prose checked -->", *lines) == found
    allowed = ["<!-- prose checked -->", "<!-- unchecked: 12.5, 2.10,", "0.75 -->"]
    assert prose(*allowed, *lines) == [
        f"line 6: -3.4 ± 0.6 {without}",
        f"line 13: 99.5 {without}",
        "the list of unchecked numbers has 0.75, and the prose does not; take it out",
    ]


def test_right_numbers_are_written_in(document, capsys):
    text = (
        "A\n9.9<!-- table2: safe | awgn:15 -->, +1 ±\n3.25<!-- table2: safe - baseline | awgn:15 -->,"
        " **1.00**<!-- table2: safe | clean -->, `9.9<!-- table2: safe | awgn:15 -->`\n"
    )
    document.write_text(document.read_text() + text)
    assert check_results.main(["--write"], [document]) == 0
    assert "1 tables and 4 numbers of the prose" in capsys.readouterr().out
    assert document.read_text().endswith(
        "A\n67.5<!-- table2: safe | awgn:15 -->, +10 ±\n6.36<!-- table2: safe - baseline | awgn:15 -->,"
        " **71.00**<!-- table2: safe | clean -->, `9.9<!-- table2: safe | awgn:15 -->`\n"
    )
    # What cannot be computed stays, and fails.
    document.write_text(document.read_text() + "1.0<!-- table2: tuned | awgn:15 -->\n")
    assert check_results.main(["--write"], [document]) == 1
    assert 'no model "tuned"' in capsys.readouterr().out
    assert document.read_text().endswith("1.0<!-- table2: tuned | awgn:15 -->\n")


def test_the_published_numbers_equal_their_files(capsys):
    assert check_results.main([]) == 0, capsys.readouterr().out
