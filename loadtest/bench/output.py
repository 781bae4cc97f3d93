"""What a benchmark leaves behind: tables for people, NAME.json, one SVG per table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from loadtest.bench.machine import one_line
from loadtest.bench.report import EQUAL, OURS, Row, peer_names, setting_text, tables

Report = dict[str, Any]
_PLOT_WIDTH_INCHES = 8.0
_BAR_INCHES = 0.22


def as_json(report: Report, *, indent: bool = False) -> str:
    """One JSON object; not-a-number and infinity become null."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(report, option=options).decode()


def print_tables(report: Report, console: Console) -> None:
    """One table per `what`; a wrong answer and a missing peer are said in a footnote."""
    for what, rows in tables(report["rows"]).items():
        peers = peer_names(rows)
        table = Table(title=f"{what}, {rows[0]['unit']}", title_justify="left")
        table.add_column("setting")
        for name in (OURS, *peers):
            table.add_column(name, justify="right")
        notes: dict[str, str] = {}
        for one in rows:
            cells = [_cell(one, name, notes) for name in peers]
            table.add_row(setting_text(one["setting"]), _own_cell(one, notes), *cells)
        console.print(table)
        for note, mark in notes.items():
            console.print(f"  {mark} {note}", highlight=False)
    console.print("× ours is that many times better. " + one_line(report["machine"]), style="dim")


def write_report(name: str, report: Report, directory: Path) -> list[Path]:
    """NAME.json and, where matplotlib is installed, one NAME-WHAT.svg per table (NAME.svg where
    there is one table only); the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.json"
    file.write_text(as_json(report, indent=True) + "\n", encoding="utf-8")
    written = [file]
    if find_spec("matplotlib") is not None:
        drawn = tables(report["rows"])
        for what, rows in drawn.items():
            plot = directory / (f"{name}-{_slug(what)}.svg" if len(drawn) > 1 else f"{name}.svg")
            _draw(what, rows, one_line(report["machine"]), plot)
            written.append(plot)
    return written


def _own_cell(one: Row, notes: dict[str, str]) -> str:
    answer = one.get("answers", {}).get(OURS, EQUAL)
    text = _number(one[OURS])
    return text if answer == EQUAL else f"{text} {_mark(f'{OURS}: {answer}', notes)}"


def _cell(one: Row, name: str, notes: dict[str, str]) -> str:
    figure = one["peers"].get(name)
    if figure is None:
        return "–"
    if isinstance(figure, str):
        return _mark(f"{name}: {figure}", notes)
    text = f"{_number(figure)} ({_number(one['ratio'][name])}×)"
    answer = one.get("answers", {}).get(name, EQUAL)
    return text if answer == EQUAL else f"{text} {_mark(f'{name}: {answer}', notes)}"


def _mark(note: str, notes: dict[str, str]) -> str:
    return notes.setdefault(note, f"({len(notes) + 1})")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _slug(what: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")


def _draw(what: str, rows: Sequence[Row], caption: str, file: Path) -> None:
    """Lines over the one setting that varies, where it is a number; else a bar per contender."""
    import matplotlib

    matplotlib.use("svg")
    # The same rows give the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "onesearch", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    axis = _axis_of(rows)
    names = [OURS, *peer_names(rows)]
    bars = len(rows) * (len(names) + 1)
    height = 4.0 if axis else max(2.5, _BAR_INCHES * bars + 1.2)
    figure = Figure(figsize=(_PLOT_WIDTH_INCHES, height), layout="constrained")
    plot = figure.subplots()
    if axis:
        for name in names:
            values = [(one["setting"][axis], _value_of(one, name) or 0.0) for one in rows]
            known = [(place, value) for place, value in values if value > 0]
            plot.plot(*zip(*known, strict=True), marker="o", label=name) if known else None
        plot.set(xscale="log", yscale="log", xlabel=axis, ylabel=rows[0]["unit"])
    else:
        for place, name in enumerate(names):
            heights = [index * (len(names) + 1) + place for index in range(len(rows))]
            lengths = [_value_of(one, name) or 0.0 for one in rows]
            plot.barh(heights, lengths, height=0.9, label=name)
        middles = [index * (len(names) + 1) + (len(names) - 1) / 2 for index in range(len(rows))]
        plot.set_yticks(middles, [setting_text(one["setting"]) for one in rows], fontsize=7)
        plot.invert_yaxis()
        # A count may be 0, and a slope below it.
        known = [_value_of(one, name) for one in rows for name in names]
        positive = all(value is None or value > 0 for value in known)
        plot.set(xscale="log" if positive else "linear", xlabel=rows[0]["unit"])
    plot.set_title(what, fontsize=10)
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3, which="both" if axis else "major")
    figure.supxlabel(caption, fontsize=5)
    figure.savefig(file, format="svg", metadata={"Date": None})


def _axis_of(rows: Sequence[Row]) -> str | None:
    settings = [one["setting"] for one in rows]
    keys = {key for setting in settings for key in setting}
    varying = [key for key in keys if len({str(setting.get(key)) for setting in settings}) > 1]
    if len(varying) != 1:
        return None
    values = [setting.get(varying[0]) for setting in settings]
    numeric = all(isinstance(value, int | float) and value > 0 for value in values)
    return varying[0] if numeric and len(values) > 2 else None


def _value_of(one: Row, name: str) -> float | None:
    value = one[OURS] if name == OURS else one["peers"].get(name)
    return value if isinstance(value, int | float) else None
