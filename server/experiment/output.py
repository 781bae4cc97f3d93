"""What a report leaves behind: Markdown for people, report.json, and plots of the lifts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from server.experiment.metrics import LABELS
from server.experiment.report import Report

_PLOT_WIDTH_INCHES = 8.0
_ROW_INCHES = 0.28
_PLOTTED_METRIC = "item_ctr"


def as_json(report: Report, *, indent: bool = False) -> str:
    """One JSON object."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(report, option=options).decode()


def as_markdown(report: Report) -> str:
    """The whole report as Markdown tables."""
    lines = [f"# {title_of(report)}", ""]
    check = report["sample_ratio"]
    verdict = "holds" if check["ok"] else "**fails**"
    counts = ", ".join(
        f"{arm} {count:,} (expected {check['expected'][arm]:,.0f})"
        for arm, count in check["counts"].items()
    )
    lines += [f"Sample ratio {verdict}, p = {check['p_value']:.3g}: {counts}.", ""]
    if not report["trustworthy"]:
        lines += ["**Do not use these figures; the notes say why.**", ""]
    lines += [*_arm_table(report), "", *_lift_table(report), ""]
    if report["segments"]:
        lines += ["## Segments", "", *_segment_table(report["segments"]), ""]
    if report["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in report["notes"]), ""]
    return "\n".join(lines)


def title_of(report: Report) -> str:
    """Name of the experiment, and whether its users are real."""
    return (report["experiment"] or "no experiment") + (
        " (simulated users)" if report["simulated"] else ""
    )


def write_report(report: Report, directory: Path) -> list[Path]:
    """report.json, report.md and, where matplotlib is installed, lifts.svg and segments.svg; the
    files written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "report.json", directory / "report.md"]
    written[0].write_text(as_json(report, indent=True) + "\n", encoding="utf-8")
    written[1].write_text(as_markdown(report), encoding="utf-8")
    if find_spec("matplotlib") is None:
        return written
    several = len(report["arms"]) > 2
    overall = [(_row_label(row, several), row) for row in report["comparisons"]]
    parts = [
        (f"{row['segment']}: {row['value']}" + (f", {row['arm']}" if several else ""), row)
        for row in report["segments"]
        if row["metric"] == _PLOTTED_METRIC
    ]
    title = title_of(report)
    for name, rows, what in (
        ("lifts.svg", overall, "relative lift"),
        ("segments.svg", parts, f"relative lift of {LABELS[_PLOTTED_METRIC]}"),
    ):
        if drawn := [(label, row) for label, row in rows if row["lift"] is not None]:
            _draw(f"{title}: {what}, 95 % intervals", drawn, directory / name)
            written.append(directory / name)
    return written


def _arm_table(report: Report) -> list[str]:
    lines = _head("arm", "units", "pages", "clicks", "orders", "buyers", *LABELS.values())
    for arm, facts in report["arms"].items():
        counts = [f"{facts[name]:,}" for name in ("units", "pages", "clicks", "orders", "buyers")]
        cells = [_value(facts["metrics"][name]) for name in LABELS]
        lines.append(_line(arm, *counts, *cells))
    return lines


def _lift_table(report: Report) -> list[str]:
    lines = _head(
        "arm",
        "metric",
        "lift",
        "95 % interval",
        "p",
        "p corrected",
        "",
        "detectable",
        "units for 5 %",
    )
    for row in report["comparisons"]:
        found = "–" if row["detectable"] is None else f"±{row['detectable']:.2%}"
        units = row["units_for_5_percent"]
        needed = "–" if units is None else f"{units:,}"
        lines.append(_line(row["arm"], LABELS[row["metric"]], *_lift_cells(row), found, needed))
    return [*lines, "", "Detectable, and the units that it would take to find 5 %: at 80 % power."]


def _segment_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = _head(
        "segment", "arm", "metric", "units", "lift", "95 % interval", "p", "p corrected", ""
    )
    for row in rows:
        name = f"{row['segment']}: {row['value']}"
        units = f"{row['units']:,}"
        lines.append(_line(name, row["arm"], LABELS[row["metric"]], units, *_lift_cells(row)))
    return lines


def _lift_cells(row: dict[str, Any]) -> list[str]:
    if row["lift"] is None:
        return ["–"] * 4 + [""]
    low, high = row["ci95"]
    mark = "significant" if row["significant"] else ""
    return [
        f"{row['lift']:+.2%}",
        f"[{low:+.2%}, {high:+.2%}]",
        f"{row['p_value']:.3g}",
        f"{row['p_corrected']:.3g}",
        mark,
    ]


def _value(metric: dict[str, Any]) -> str:
    return "–" if metric["value"] is None else f"{metric['value']:.4f}"


def _head(*names: str) -> list[str]:
    return [_line(*names), "|" + "---|" * len(names)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row_label(row: dict[str, Any], several: bool) -> str:
    return LABELS[row["metric"]] + (f", {row['arm']}" if several else "")


def _draw(title: str, rows: Sequence[tuple[str, dict[str, Any]]], file: Path) -> None:
    """One line per row: the lift and its interval."""
    import matplotlib

    matplotlib.use("svg")
    # The same report gives the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "onesearch", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    size = (_PLOT_WIDTH_INCHES, max(2.0, _ROW_INCHES * len(rows) + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    plot = figure.subplots()
    lifts = [100 * row["lift"] for _, row in rows]
    below = [100 * (row["lift"] - row["ci95"][0]) for _, row in rows]
    above = [100 * (row["ci95"][1] - row["lift"]) for _, row in rows]
    places = list(range(len(rows)))
    plot.errorbar(lifts, places, xerr=[below, above], fmt="o", capsize=3)
    plot.axvline(0.0, color="grey", linewidth=1)
    plot.set_yticks(places, [label for label, _ in rows], fontsize=8)
    plot.invert_yaxis()
    plot.set(xlabel="%")
    plot.set_title(title, fontsize=10)
    figure.savefig(file, metadata={"Date": None})
