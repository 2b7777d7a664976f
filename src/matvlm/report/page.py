"""One HTML page with verdicts, tables, figures and provenance, which loads nothing from anywhere.

Tables come as HTML fragments from `matvlm.report.writers`, figures as SVG from `matvlm.report.figures`; all else
is text from CSV files, and is escaped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from matvlm.errors import UserError
from matvlm.files import write_text
from matvlm.report import svg
from matvlm.report.claim_rows import UNKNOWN, VERDICTS, read_claims
from matvlm.report.comparison import READING, SHOWN, compare, differences
from matvlm.report.origins import read_origins
from matvlm.report.settings import Report

SECTIONS = {
    "Quality": ("table main", "figure radar"),
    "Ablations": (
        *("figure ablations", "table losses", "table layouts", "table ratios"),
        *("table inits", "figure convergence", "table divergences"),
    ),
    "Speed and memory": ("table speed", "figure speed", "figure memory"),
}
TITLES = {
    "table main": "Teacher and hybrid",
    "table losses": "Losses",
    "table layouts": "Placement of the Mamba-2 layers",
    "table ratios": "Ratio of replaced layers",
    "table inits": "Initialisation",
    "table divergences": "Divergence of the probability loss",
    "table speed": "Speed and memory in numbers",
    "figure radar": "Scores by task",
    "figure ablations": "All ablations at a glance",
    "figure convergence": "Convergence by initialisation",
    "figure speed": "Speed",
    "figure memory": "Memory",
}
CAPTIONS = {
    "radar": "Scores of the teacher and of hybrids by the ratio of layers replaced, after Figure 1 (a) of the "
    "paper. Each axis has a range of its own, whose ends are written on it; the centre is not zero.",
    "ablations": "Mean accuracy over the tasks of every cell, one panel for each axis of the ablation; all else "
    "is as in the base cell, which is set in blue. The dashed line is the teacher.",
    "convergence": "Validation KL to the teacher against training tokens, by initialisation of the Mamba-2 "
    "layers. Lower is better; the vertical axis is logarithmic.",
    "speed": "Decoding rate of teacher and hybrids at a given length, after Figure 1 (b) of the paper. Hollow "
    "markers are published values, read from the paper's figure.",
    "memory": "Peak memory that the device's allocator had given out, after Figure 1 (c) of the paper. Hollow "
    "markers are published values, read from the paper's figure.",
}
SOURCES = {
    **dict.fromkeys(("table speed", "figure speed", "figure memory"), ("profile",)),
    "table inits": ("eval", "train"),
    "figure convergence": ("train",),
}
"""CSV files behind each item; eval.csv where nothing is said."""
WIDE = 400
"""Points from which a figure takes the whole width of the page."""


@dataclass(frozen=True)
class Item:
    """A table or a figure of the page; ``body`` is trusted HTML."""

    kind: str
    name: str
    title: str
    caption: str
    body: Markup
    command: str
    links: list[tuple[str, str]]
    wide: bool = True


def write(
    settings: Report,
    claims: Path,
    tables: list[Path],
    figures: list[Path],
    data: list[Path],
    beside: list[Path],
    out: Path,
) -> None:
    """Write the page.

    Args:
        claims: `claims.csv`. tables: HTML fragments. figures: SVG files. data: CSV files to link, and to read
            the provenance from. beside: `claims.csv` of other presets. All links are relative to the folder of
            ``out``.

    Raises:
        UserError: a file that is not what it should be, naming it.
    """
    link = _linker(out)
    sources = {path.stem: path for path in data}
    items = [_table(settings, path, sources, link) for path in tables]
    items += [_figure(settings, path, sources, link) for path in figures]
    verdicts = read_claims(claims)
    comparison = compare({path.parent.name: path for path in beside} | {settings.preset: claims})
    counts = Counter(claim.verdict for claim in verdicts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("matvlm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "size": size}
    text = environment.get_template("page.html.j2").render(
        settings=settings,
        claims=verdicts,
        counts=[(verdict, *VERDICTS.get(verdict, UNKNOWN), n) for verdict, n in _in_order(counts)],
        claim_links=[("Markdown", link(claims.with_suffix(".md"))), (claims.name, link(claims))],
        comparison=comparison,
        descriptions=SHOWN,
        notes=[READING, *differences(comparison)],
        pages={path.parent.name: link(path.with_name("index.html")) for path in beside},
        sections=arrange(items),
        origins=read_origins(data),
        data=[(path.name, link(path)) for path in data],
    )
    write_text(out, text)


def arrange(items: list[Item]) -> list[tuple[str, list[Item]]]:
    """Items by section, in the order of `SECTIONS`; whatever these do not know comes last."""
    known = {f"{item.kind} {item.name}": item for item in items}
    sections = [(title, [known.pop(name) for name in names if name in known]) for title, names in SECTIONS.items()]
    return [(title, found) for title, found in (*sections, ("Further results", list(known.values()))) if found]


def duration(seconds: float) -> str:
    """Seconds as `2 h 05 min`, `3 min 20 s` or `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    """Bytes as MB or GB, of 10^6 and 10^9 bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _table(settings: Report, path: Path, sources: dict[str, Path], link: Callable[[Path], str]) -> Item:
    fragment = path.read_text(encoding="utf-8").strip()
    if not fragment.startswith("<table") or not fragment.endswith("</table>"):
        raise UserError(f"{path}: not an HTML table")
    files = [("Markdown", path.with_suffix(".md")), ("LaTeX", path.with_suffix(".tex"))]
    return _item(settings, "table", path, Markup(fragment), files, sources, link)


def _figure(settings: Report, path: Path, sources: dict[str, Path], link: Callable[[Path], str]) -> Item:
    label = CAPTIONS.get(path.stem, f"Figure {path.stem}")
    body = svg.inline(path, f"{path.stem}-", label)
    files = [("SVG", path), ("PNG", path.with_suffix(".png"))]
    return _item(settings, "figure", path, Markup(body), files, sources, link, wide=svg.width(body) > WIDE)


def _item(
    settings: Report,
    kind: str,
    path: Path,
    body: Markup,
    files: list[tuple[str, Path]],
    sources: dict[str, Path],
    link: Callable[[Path], str],
    *,
    wide: bool = True,
) -> Item:
    key = f"{kind} {path.stem}"
    files += [(sources[stem].name, sources[stem]) for stem in SOURCES.get(key, ("eval",)) if stem in sources]
    return Item(
        kind=kind,
        name=path.stem,
        title=TITLES.get(key, path.stem),
        caption=CAPTIONS.get(path.stem, "") if kind == "figure" else "",
        body=body,
        command=settings.command(f"{kind}_{path.stem}"),
        links=[(name, link(file)) for name, file in files],
        wide=wide,
    )


def _linker(out: Path) -> Callable[[Path], str]:
    return lambda path: quote(Path(os.path.relpath(path, out.parent)).as_posix())


def _in_order(counts: Counter[str]) -> Iterable[tuple[str, int]]:
    known = list(VERDICTS)
    return sorted(counts.items(), key=lambda item: (known.index(item[0]) if item[0] in known else 99, item[0]))
