"""An ablation's report as Markdown tables and as a plot, for docs/measurements."""

# matplotlib's types are partial.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from index import artifact

SLICES = ("head", "middle", "tail", "question", "negation", "cold item", "history", "no history")
_PUBLISHED_PLACE = {"order": 0, "click": 2}  # of HR@10 in Row.published
_CELLS = (("click", "hr@10"), ("click", "mrr@10"), ("order", "hr@10"), ("order", "mrr@10"))
_PLOT_WIDTH_INCHES, _ROW_INCHES = 8.0, 0.34
MISSING = "not run"


def write_report(report: Mapping[str, Any], name: str, directory: Path) -> list[Path]:
    """NAME.json, NAME.md and, where matplotlib is installed, NAME.svg; the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{name}.{ending}" for ending in ("json", "md", "svg")]
    artifact.write_file(files[0], orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    artifact.write_file(files[1], as_markdown(report, name).encode())
    if find_spec("matplotlib") is None or all(row["missing"] for row in report["rows"]):
        return files[:2]
    _draw(report, files[2])
    return files


def as_markdown(report: Mapping[str, Any], name: str) -> str:
    """All tables. Rows that were not run are named as such."""
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    made = ", simulated behaviour" if report["simulated"] else ""
    visits = report["visits"]
    done = sum(len(row["seeds"]) for row in rows)
    parts = [
        f"# {name}",
        f"Recipe {report['recipe']}, {report['items']:,} items{made}; {visits['click']:,} searches "
        f"of {visits['queries']:,} queries, {visits['order']:,} with an order; "
        f"{done} of {len(rows) * report['seeds']} rows × seeds. Intervals: 95 %, over queries and "
        "seeds.",
        *_figures(rows, "decoder", "The decoder alone: items of the beam, best SID first"),
        *_gains(rows, "decoder", "What each row gained, the decoder alone"),
        *_figures(rows, "served", "The served ranking"),
        *_gains(rows, "served", "What each row gained, the served ranking"),
        *_slices(rows),
        *_published(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _figures(rows: Sequence[Mapping[str, Any]], ranking: str, title: str) -> list[str]:
    head = ["Row", "Seeds", *(f"{metric.upper()} {target}" for target, metric in _CELLS)]
    lines: list[list[str]] = []
    for row in rows:
        if row["missing"]:
            lines.append([row["title"], "0", *[MISSING] * (len(_CELLS) + 1)])
            continue
        figures = row["figures"][ranking]
        cells = [_level(figures.get(target), metric) for target, metric in _CELLS]
        rates = row["valid_rate"]
        valid = f"{sum(rates) / len(rates):.1%}"
        lines.append([row["title"], str(len(row["seeds"])), *cells, valid])
    return [f"## {title}", _table([*head, "Valid SIDs"], lines)]


def _gains(rows: Sequence[Mapping[str, Any]], ranking: str, title: str) -> list[str]:
    titles = {row["name"]: row["title"] for row in rows}
    lines: list[list[str]] = []
    for row in rows:
        for other in row["against"]:
            found = None if row["missing"] else row["differences"].get(other)
            cells = [MISSING] * (len(_CELLS) + 1)
            if found is not None:
                gained = found[ranking]
                cells = [str(len(found["seeds"]))]
                cells += [_change(gained.get(target), metric) for target, metric in _CELLS]
            lines.append([row["title"], titles[other], *cells])
    head = ["Row", "less", "Seeds", *(f"{metric.upper()} {target}" for target, metric in _CELLS)]
    return [f"## {title}", _table(head, lines)]


def _slices(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    measured = [row for row in rows if not row["missing"]]
    if not measured:
        return []
    names = [name for name in SLICES if measured[0]["slices"].get(name, {}).get("click")]
    sizes = {name: measured[0]["slices"][name]["click"]["visits"] for name in names}
    lines = [
        [row["title"], *(_rounded(row["slices"][name]["click"]["hr@10"]) for name in names)]
        for row in measured
    ]
    head = ["Row", *(f"{name} ({sizes[name]:,})" for name in names)]
    return ["## HR@10 click by slice, the decoder alone", _table(head, lines)]


def _published(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each published addition beside ours: same sign, other sign, or too small to see here."""
    lines: list[list[str]] = []
    before: Mapping[str, Any] | None = None
    for row in rows:
        if row["published"] is None:
            continue
        if before is not None:
            cells: list[str] = []
            for target, place in _PUBLISHED_PLACE.items():
                gain = row["published"][place] - before["published"][place]
                found = None if row["missing"] else row["differences"].get(row["against"][0])
                ours = found["decoder"].get(target) if found is not None else None
                cells += [f"{gain:+.4f}", _verdict(gain, ours)]
            lines.append([row["title"], *cells])
        before = row
    head = ["Addition", "published, order", "here", "published, click", "here"]
    return ["## The published gains, HR@10", _table(head, lines)]


def _verdict(gain: float, ours: Mapping[str, Any] | None) -> str:
    if ours is None:
        return MISSING
    value, (low, high) = ours["hr@10"], ours["ci95"]["hr@10"]
    if low <= 0 <= high:
        return f"{value:+.4f}, within the noise"
    same = (value > 0) == (gain > 0)
    return f"{value:+.4f}, {'reproduced' if same else 'the opposite'}"


def _level(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None:
        return "–"
    low, high = cell["ci95"][metric]
    return f"{_rounded(cell[metric])} [{_rounded(low)}, {_rounded(high)}]"


def _change(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None:
        return "–"
    low, high = cell["ci95"][metric]
    text = f"{cell[metric]:+.3f} [{low:+.3f}, {high:+.3f}]"
    return text if low <= 0 <= high else f"**{text}**"


def _rounded(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def _draw(report: Mapping[str, Any], file: Path) -> None:
    """HR@10 of the decoder by row, with intervals, for both targets."""
    import matplotlib

    matplotlib.use("svg")
    # The same report gives the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "onesearch", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if not row["missing"]]
    height = max(2.5, _ROW_INCHES * len(rows) + 1.2)
    figure = Figure(figsize=(_PLOT_WIDTH_INCHES, height), layout="constrained")
    plot = figure.subplots()
    for shift, target in ((-0.12, "click"), (0.12, "order")):
        points = [
            (index + shift, row["figures"]["decoder"][target])
            for index, row in enumerate(rows)
            if target in row["figures"]["decoder"]
        ]
        values = [cell["hr@10"] for _, cell in points]
        edges = [cell["ci95"]["hr@10"] for _, cell in points]
        spread = [
            [max(0.0, value - low) for value, (low, _) in zip(values, edges, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, edges, strict=True)],
        ]
        places = [place for place, _ in points]
        plot.errorbar(values, places, xerr=spread, fmt="o", markersize=4, capsize=2, label=target)
    labels = [f"{row['title']} ({len(row['seeds'])})" for row in rows]
    plot.set_yticks(range(len(rows)), labels, fontsize=8)
    plot.invert_yaxis()
    plot.set(xlabel="HR@10 of the decoder alone, 95 % over queries and seeds (number of seeds)")
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3)
    figure.savefig(file, format="svg", metadata={"Date": None})
