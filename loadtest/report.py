"""What a person reads of a run: report.md, report.html, report.json, plots.

Markdown and HTML are written from the same sections, so they say the same.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from loadtest.bench.machine import one_line
from loadtest.compare import Difference
from loadtest.plots import draw_plots
from loadtest.results import REPORT, Run
from loadtest.slo import Check

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .6rem}"
    "td{text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, sentences, a table (its first row are names), pictures by file name."""

    title: str
    text: Sequence[str] = ()
    table: Sequence[Sequence[Cell]] = ()
    pictures: Sequence[str] = field(default_factory=list[str])


def write_report(
    run: Run,
    figures: Mapping[str, Any],
    checks: Sequence[Check],
    machine: Mapping[str, Any],
    command: str,
    out: Path,
) -> list[Path]:
    """The files written. Plots need matplotlib (extra `loadtest`); without it there are none."""
    pictures = draw_plots(run, out) if find_spec("matplotlib") is not None else []
    sections = _sections(figures, checks, machine, command, [one.name for one in pictures])
    report = {
        "machine": dict(machine),
        "command": command,
        **figures,
        "objectives": [asdict(one) for one in checks],
    }
    files = [out / REPORT, out / "report.md", out / "report.html"]
    files[0].write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    files[1].write_text(as_markdown("Load test", sections), encoding="utf-8")
    files[2].write_text(as_html("Load test", sections), encoding="utf-8")
    return files + pictures


def comparison(differences: Sequence[Difference], slower: float) -> list[Section]:
    """Two runs beside each other."""
    names = ("phase", "request", "", "base ms", "new ms", "new / base", "95 %", "verdict")
    rows: list[Sequence[Cell]] = [
        (
            one.phase,
            one.kind,
            one.quantile,
            one.base_ms,
            one.new_ms,
            one.ratio,
            f"{one.low:.2f} – {one.high:.2f}",
            one.verdict(slower),
        )
        for one in differences
    ]
    told = f"Slower: all of the interval is above {slower:g}. Whole seconds were drawn 400 times."
    return [Section("Latencies", [told], [names, *rows])]


def _sections(
    figures: Mapping[str, Any],
    checks: Sequence[Check],
    machine: Mapping[str, Any],
    command: str,
    pictures: Sequence[str],
) -> list[Section]:
    broken = [one for one in checks if not one.held]
    knee = figures["knee_per_s"]
    told = [f"`{command}`", one_line(dict(machine))]
    if machine["busy"]:
        share = machine["load_before"]["busy_share"]
        told.append(f"The machine was {share:.0%} busy before the start: do not trust the timings.")
    if knee is not None:
        told.append(f"Knee: {knee:g} searches a second.")
    told.append(f"Objectives: {len(checks) - len(broken)} of {len(checks)} held.")
    unexplained = figures["unexplained"]
    told.append(f"Unexplained errors: {figures['unexplained_errors']} {unexplained or ''}".strip())
    sections = [Section("Result", told, pictures=pictures)]
    if checks:
        names = ("objective", "bound", "found", "")
        rows: list[Sequence[Cell]] = [
            (one.what, one.bound, one.found, "held" if one.held else "BROKEN") for one in checks
        ]
        sections.append(Section("Objectives", table=[names, *rows]))
    sections += _phases(figures)
    if figures["steps"]:
        names = ("searches/s", "in time and whole", "")
        rows = [
            (round(one["rate"], 1), f"{one['share']:.2%}", "held" if one["held"] else "did not")
            for one in figures["steps"]
        ]
        sections.append(Section("Steps of the knee's search", table=[names, *rows]))
    told = [
        _memory(name, figures[part])
        for name, part in _MEMORY
        if figures.get(part, {}).get("first_mb")
    ]
    if told:
        sections.append(Section("Memory", told))
    return sections


_MEMORY = (
    ("Server and children without Redis", "memory"),
    ("Redis, which keeps what it is told", "redis_memory"),
)


def _memory(name: str, memory: Mapping[str, Any]) -> str:
    text = f"{name}: {memory['first_mb']} MB first, {memory['last_mb']} MB last."
    if memory["ci95"] is not None:
        low, high = memory["ci95"]
        text += f" Slope after the first fifth: {memory['mb_per_hour']} MB/h ({low} to {high})."
    return text


def _phases(figures: Mapping[str, Any]) -> list[Section]:
    names = (
        *("phase", "searches/s", "request", "count", "p50 ms", "p95 ms", "p99 ms", "max ms"),
        *("degraded", "refused", "errors", "server cores", "load cores"),
    )
    rows: list[Sequence[Cell]] = []
    for phase in figures["phases"]:
        for kind, one in phase["kinds"].items():
            rows.append(
                (
                    phase["phase"],
                    phase["searches_per_s"],
                    kind,
                    one["requests"],
                    *(one[name] for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
                    *(
                        f"{one[name]:.2%}"
                        for name in ("degraded_share", "refused_share", "error_share")
                    ),
                    phase.get("server_cores"),
                    phase.get("load_cores"),
                )
            )
    told = ["Latencies count from the instant at which a request was due; of answers only."]
    swaps = figures["swaps"]
    if swaps is not None:
        told.append(
            f"{swaps['requests']} swaps: p50 {swaps['p50_ms']} ms, slowest {swaps['max_ms']} ms."
        )
    return [Section("Phases", told, [names, *rows])]


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """One document."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.text:
            lines += [text, ""]
        lines += [f"![{name}]({name})\n" for name in section.pictures]
        if section.table:
            head, *rows = section.table
            lines.append("| " + " | ".join(map(_text, head)) + " |")
            lines.append("|---" * len(head) + "|")
            lines += ["| " + " | ".join(map(_text, row)) + " |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def as_html(title: str, sections: Sequence[Section]) -> str:
    """One page; pictures are files beside it."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(text)}</p>" for text in section.text]
        parts += [
            f'<p><img src="{html.escape(name)}" alt="{html.escape(name)}"></p>'
            for name in section.pictures
        ]
        if section.table:
            head, *rows = section.table
            parts.append("<table>" + _row(head, "th"))
            parts += [_row(row, "td") for row in rows]
            parts.append("</table>")
    return "\n".join(parts) + "\n"


def _row(cells: Sequence[Cell], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(_text(one))}</{tag}>" for one in cells) + "</tr>"


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
