"""Names of models and data that look like markup or formulas are printed and drawn as they are."""

import pytest
from matplotlib.figure import Figure

from hybrid.figures import draw_noise
from hybrid.printing import print_table
from snn.runtime.outputs import save_figure

NAMES = ("a[/m]", "[red]", "[bold]x[/bold]", "[link=x]", "a$x^$", "$x$", ":smile:", "\\[a]", "100%", "[1]")


@pytest.mark.parametrize("name", NAMES)
def test_tables_print_names_as_they_are(name, capsys):
    print_table(f"accuracy of {name}", ("condition", name), [(name, "1.0")])
    title, _, headings, _, cells, *_ = capsys.readouterr().out.splitlines()
    assert f"accuracy of {name}" in " ".join(title.split())
    assert name in headings
    assert name in cells


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_names_as_they_are(name, tmp_path):
    rows = [
        {"model": name, "condition": condition, "snr_dB": snr, "value_percent": 50.0, "deviation_percent": 1.0}
        for condition, snr in (("clean", ""), ("awgn:20", 20.0), (name, ""))
    ]
    draw_noise(rows, tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 1000


def test_the_title_of_a_narrow_table_stays_in_one_line(capsys):
    print_table("top1 accuracy of each class (%, clean)", ("class", "safe"), [("cat", "1.0")])
    assert "top1 accuracy of each class (%, clean)" in capsys.readouterr().out


def test_formulas_are_drawn_for_powers_of_ten_alone(tmp_path):
    figure = Figure()
    axes, bars = figure.subplots(1, 2)
    axes.loglog([1, 1000], [1, 1000], label="$x$")
    axes.set_title("$x$")
    axes.legend()
    bars.set_xticks([0, 1], ["$x$", "a$x^$"])
    save_figure(figure, tmp_path / "figure.png")
    literal = [axes.title, *axes.get_legend().get_texts(), *bars.get_xticklabels()]
    assert [text.get_text() for text in literal] == ["$x$", "$x$", "$x$", "a$x^$"]
    assert not any(text.get_parse_math() for text in literal)
    assert all(text.get_parse_math() for text in axes.get_xticklabels())
