"""Tables and the roofline of ``python -m benchmarks.gpu``."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.engine_costs import KERNEL_NAMES, Ceilings, Work, bound
from benchmarks.engine_plan import IMAGES, OPERATION, LayerPlan
from benchmarks.gpu_networks import FRONT_END
from benchmarks.jobs import Row

PARTS_OF_UPDATE = ("encode", "layers below", "simulate", "events", "update", "rest")
FAILURES = 20
"""Tests that failed, at most, in the table."""
MARKERS = dict(zip(KERNEL_NAMES, "osD^v", strict=True))


def scaled(row: Row, key: str, factor: float = 1.0) -> str:
    """A number of a row as text; nothing where the row has none."""
    value = row.get(key)
    return "" if value is None else short_number(value * factor)


def short_number(value: float) -> str:
    """Three digits; no exponent where it can be helped."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def print_part(name: str, part: Row) -> None:
    """The table of a part."""
    rows: list[Row] = part["rows"]
    ended = f": {part['problem'].strip().splitlines()[-1]}" if part["problem"] else ""
    TABLES[name](f"{name}, {part['seconds']:.0f} s{ended}", rows)


def print_columns(title: str, rows: Iterable[Row], columns: dict[str, Callable[[Row], str]], words: int) -> None:
    """A table in Markdown, the first ``words`` columns aligned to the left; rows may have notes of their own."""
    rows = list(rows)
    if any("note" in row for row in rows):
        columns = columns | {"note": lambda row: row.get("note", "").replace("|", "/")}
    print(f"\n{title}\n", *markdown(rows, columns, words), "", sep="\n")


def markdown(rows: Iterable[Row], columns: dict[str, Callable[[Row], str]], words: int) -> list[str]:
    """Lines of a table."""
    lines = [list(columns), ["---" if place < words else "---:" for place in range(len(columns))]]
    lines += [[column(row) for column in columns.values()] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def text(key: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(key, ""))


def number(key: str, factor: float = 1.0) -> Callable[[Row], str]:
    return lambda row: scaled(row, key, factor)


def print_ceilings(title: str, rows: list[Row]) -> None:
    columns = {"resource": text("resource"), "10^12 a second": number("per_second", 1e-12)}
    print_columns(title, rows, columns | {"µs a call": number("seconds", 1e6)}, 1)


def print_tests(title: str, rows: list[Row]) -> None:
    outcomes = [row["outcome"] for row in rows]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    print(f"\n{title}: {counts or 'none'}")
    if failed := [row for row in rows if row["outcome"] == "failed"]:
        print_columns("failed", failed[:FAILURES], {"test": text("test"), "s": number("seconds")}, 1)


def print_engine(title: str, rows: list[Row]) -> None:
    def case(row: Row) -> tuple[Any, ...]:
        return row.get("case"), row.get("layer"), row.get("call")

    norse = {case(row): row["seconds"] for row in rows if row.get("way") == "engine norse" and "seconds" in row}

    def over_norse(row: Row) -> str:
        return short_number(norse[case(row)] / row["seconds"]) if "seconds" in row and case(row) in norse else ""

    columns = {
        "case": text("case"),
        "way": text("way"),
        "layer": text("layer"),
        "call": text("call"),
        "ms": number("seconds", 1e3),
        "images/s": number("images_per_s"),
        "engine norse = 1": over_norse,
        "launches": number("launches"),
        "GPU busy, ms": number("busy_s", 1e3),
        "agrees": lambda row: {True: "yes", False: "NO"}.get(row.get("agrees"), ""),
    }
    print_columns(title, rows, columns, 4)


def print_pass(title: str, rows: list[Row]) -> None:
    def part(name: str) -> Callable[[Row], str]:
        return lambda row: scaled(row["parts_s"], name, 1e3)

    columns = {
        "layer": text("layer"),
        "ms an update": number("update_s", 1e3),
        **{f"{name}, ms": part(name) for name in PARTS_OF_UPDATE},
        "launches": number("launches"),
        "GPU busy, ms": number("busy_s", 1e3),
        "start, s": number("start_s"),
        "finish, s": number("finish_s"),
    }
    print_columns(title, [row for row in rows if "layer" in row], columns, 1)
    passes = {"pass": text("pass"), "s": number("seconds"), "images/s": number("images_per_s")}
    print_columns("passes over all three layers", [row for row in rows if "pass" in row], passes, 1)


def print_frontend(title: str, rows: list[Row]) -> None:
    columns = {name: text(name) for name in ("network", "precision", "batch")}
    print_columns(title, rows, columns | {"images/s": number("images_per_s")}, 2)


def print_training(title: str, rows: list[Row]) -> None:
    columns = {name: text(name) for name in ("backbone", "variant", "batch")}
    figures = {"images/s": number("images_per_s"), "time over the baseline's": number("time_over_baseline")}
    print_columns(title, rows, columns | figures, 2)


def print_summary(parts: dict[str, Row]) -> None:
    """What a reader wants to know first, of the parts that were measured."""
    rows: dict[str, list[Row]] = {name: part["rows"] for name, part in parts.items()}
    outcomes = [row["outcome"] for row in rows.get("tests", [])]
    if outcomes:
        print(f"tests: {outcomes.count('passed')} passed, {outcomes.count('failed')} failed")
    for row in rows.get("pass", []):
        if "pass" in row and "seconds" in row:
            print(f"pass {row['pass']}: {row['seconds']:.3g} s, {row['images_per_s']:,.0f} images/s")
    speeds: dict[str, dict[str, float]] = {}
    for row in rows.get("engine", []):
        if row.get("call") == "simulate" and "layer" not in row and "images_per_s" in row:
            speeds.setdefault(row["case"], {})[row["way"]] = row["images_per_s"]
    for case, ways in speeds.items():
        first = next(iter(ways))
        others = [f"{ways[first] / speed:.3g} times {way}" for way, speed in ways.items() if way != first]
        print(f"{case}: images/s of {first} are {', '.join(others) or 'alone'}")
    if fast := [row for row in rows.get("frontend", []) if row["network"] == FRONT_END and "images_per_s" in row]:
        best_row = max(fast, key=lambda row: row["images_per_s"])
        print(f"{FRONT_END}: {best_row['images_per_s']:,.0f} images/s in batches of {best_row['batch']}")


TABLES: dict[str, Callable[[str, list[Row]], None]] = {
    "ceilings": print_ceilings,
    "tests": print_tests,
    "engine": print_engine,
    "pass": print_pass,
    "frontend": print_frontend,
    "training": print_training,
}


def measured_ceilings(rows: Iterable[Row]) -> Ceilings | None:
    """From the rows of part ``ceilings``; None if one is missing."""
    found = {row["resource"]: row["per_second"] for row in rows if "per_second" in row}
    if not set(Ceilings._fields) <= set(found):
        return None
    return Ceilings(**{name: found[name] for name in Ceilings._fields})


def roofline(rows: Iterable[Row], most: Ceilings) -> list[Row]:
    """For each kernel of each call of the GPU engine: its work, its least time, and the time it took.

    ``rows`` are those of part ``engine``, on a CPU with another engine in its place. ``measured_s`` and ``share`` are
    missing where no kernel of this name ran.
    """
    points: list[Row] = []
    for row in (row for row in rows if "work" in row and row["way"] != "engine norse"):
        for kernel, figures in row["work"].items():
            work = Work(**figures)
            limit = bound(work, most)
            point = {name: row[name] for name in ("case", "layer", "call")} | {"kernel": kernel} | figures
            point |= {"operations_per_byte": work.intensity, "bound": limit.resource, "least_s": limit.seconds}
            ran = [
                each["seconds"]
                for name, each in row.get("kernels", {}).items()
                if name.startswith(KERNEL_NAMES[kernel])
            ]
            if ran:
                point |= {"measured_s": sum(ran), "share": limit.seconds / sum(ran)}
            points.append(point)
    return points


WORK: dict[str, Callable[[Row], str]] = {
    "int8, 10^9": number("int8", 1e-9),
    "int32, 10^9": number("int32", 1e-9),
    "float32, 10^9": number("float32", 1e-9),
    "MB": number("bytes", 1e-6),
    "operations a byte": number("operations_per_byte"),
    "bound by": text("bound"),
    "least µs": number("least_s", 1e6),
}


def print_roofline(points: Sequence[Row]) -> None:
    """The work of each kernel beside what it took."""
    places = {name: text(name) for name in ("case", "layer", "call", "kernel")}
    took = {"µs": number("measured_s", 1e6), "share of the ceiling, %": number("share", 100)}
    print_columns("Kernels, at the ceilings that were measured", points, places | WORK | took, 4)


def draw_roofline(points: Sequence[Row], rows: Iterable[Row]) -> Figure:
    """Operations a second against operations a byte, below the ceilings in ``rows`` of part ``ceilings``.

    A hollow marker is what a kernel can reach with its own mix of operations, a filled one what it reached.
    """
    most = {row["resource"]: row["per_second"] for row in rows if "per_second" in row}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rates = {name: rate for name, rate in most.items() if name not in ("bytes", "launches")}
    highest, places = max(rates.values()), [point["operations_per_byte"] for point in points]
    low, high = (
        0.5 * min(*places, min(rates.values()) / most["bytes"]),
        3 * max(*places, highest / most["bytes"]),
    )
    axes.plot([low, highest / most["bytes"]], [low * most["bytes"], highest], color="black", linewidth=1)
    axes.annotate("memory", (1.2 * low, 1.4 * low * most["bytes"]), fontsize=7, ha="right", va="bottom")
    for name, rate in rates.items():
        axes.plot([rate / most["bytes"], high], [rate, rate], color="0.4", linewidth=0.8)
        axes.annotate(name, (high, rate), fontsize=7, ha="right", va="bottom")
    named: set[str] = set()
    for point in points:
        operations = point["int8"] + point["int32"] + point["float32"]
        place, kernel, colour = point["operations_per_byte"], point["kernel"], f"C{point['layer']}"
        axes.plot(place, operations / point["least_s"], MARKERS[kernel], color=colour, fillstyle="none", markersize=6)
        if "measured_s" in point:
            axes.plot(place, operations / point["measured_s"], MARKERS[kernel], color=colour, markersize=6)
        if kernel not in named:
            axes.plot([], [], MARKERS[kernel], color="black", label=kernel)
            named.add(kernel)
    for layer in sorted({point["layer"] for point in points}):
        axes.plot([], [], "-", color=f"C{layer}", label=f"layer {layer}" if layer else "images")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte of memory")
    axes.set_ylabel("operations a second")
    axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    return figure


PLACES: dict[str, Callable[[Row], str]] = {
    "neurons of": lambda row: f"layer {row['layer']}" if row["layer"] else "images",
    "kernel": text("kernel"),
}
PASS: dict[str, Callable[[Row], str]] = {
    "layer": text("layer"),
    "spikes an image": number("spikes"),
    "updates": number("updates"),
    "kernels, least µs": number("kernel_s", 1e6),
    "operations": text("operations"),
    f"operations, µs at {OPERATION * 1e6:g}": number("operations", OPERATION * 1e6),
    "pass, s: at the same time": number("overlapped"),
    "in turn": number("in_turn"),
}


def planned_kernels(plans: Sequence[LayerPlan], most: Ceilings) -> list[Row]:
    """Work of each kernel of the updates of all layers; one that does the same in several is there once."""
    found: dict[tuple[int, str], Row] = {}
    for plan in plans:
        for kernel in plan.kernels:
            learns = kernel.name == "simulate" and kernel.layer == plan.layer
            row: Row = {"layer": kernel.layer, "kernel": f"{kernel.name}, inhibited" if learns else kernel.name}
            limit = bound(kernel.work, most)
            row |= vars(kernel.work) | {"operations_per_byte": kernel.work.intensity}
            found[row["layer"], row["kernel"]] = row | {"bound": limit.resource, "least_s": limit.seconds}
    return sorted(found.values(), key=lambda row: row["layer"])


def planned_pass(plans: Sequence[LayerPlan]) -> list[Row]:
    """Each layer's share of a pass, and all together."""
    rows: list[Row] = [plan._asdict() | {"overlapped": plan.overlapped, "in_turn": plan.in_turn} for plan in plans]
    whole = {name: sum(row[name] for row in rows) for name in ("overlapped", "in_turn")}
    return [*rows, {"layer": "all"} | whole]


def print_plan(preset: str, plans: Sequence[LayerPlan], most: Ceilings) -> None:
    """Work of an update's kernels, and what a pass should take."""
    kernels = planned_kernels(plans, most)
    print_columns(f"Preset {preset}: kernels of an update, computed", kernels, PLACES | WORK, 2)
    print_columns(f"Preset {preset}: a pass over {IMAGES:,} images, computed", planned_pass(plans), PASS, 1)
