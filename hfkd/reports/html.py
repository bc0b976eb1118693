"""A self-contained HTML page: embedded figures, no scripts or external resources, light and dark mode."""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hfkd.reports.style import Figure, figure_bytes
from hfkd.utils.files import write_atomically

Table = tuple[Sequence[Any], Sequence[Sequence[Any]]]

CSS = """
:root { color-scheme: light dark; --ink: #222; --faint: #666; --line: #ddd; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #a0a0a0; --line: #3a3a3a; --paper: #17191c; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; color: var(--ink); background: var(--paper);
       font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 44rem; }
figure { margin: 1rem 0; padding: .6rem; overflow-x: auto;
         background: #fff; border: 1px solid var(--line); border-radius: 6px; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.summary th { font-weight: normal; color: var(--faint); white-space: nowrap; }
"""

READABLE = 640  # CSS pixels: keeps text of figures readable on phones, with horizontal scrolling

# lets the browser enforce that the page loads nothing
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (separated by empty lines), then a figure, then a table, `(header, rows)`.

    `alt` is the figure's alternative text; by default title and text.
    """

    title: str
    text: str
    figure: Figure | None = None
    table: Table | None = None
    alt: str = ""


def write_page(
    path: str | os.PathLike[str],
    title: str,
    sections: Iterable[Section],
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Write `sections` below a `summary` of names and values. All text is escaped; the file is written atomically.

    Figures with images are embedded as PNG, all others as SVG.
    """
    body = [f"<h1>{_text(title)}</h1>"]
    if summary:
        rows = "".join(
            f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in summary.items()
        )
        body.append(f'<div class="wide"><table class="summary">{rows}</table></div>')
    body.extend(_section(section) for section in sections)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{CSS}</style>"
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    write_atomically(Path(path), page.encode())


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.title)}</h2>"]
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.figure is not None:
        parts.append(_figure(section.figure, section.alt or f"{section.title}. {section.text}"))
    if section.table is not None:
        parts.append(_table(section.table))
    return f"<section>{''.join(parts)}</section>"


def _figure(figure: Figure, alt: str) -> str:
    kind, data = figure_bytes(figure)
    width = round(figure.get_figwidth() * 96)  # CSS pixels, independent of the PNG's resolution
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    least = f"min-width: {min(width, READABLE)}px"
    return f'<figure><img width="{width}" style="{least}" src="{source}" alt="{_text(alt)}"></figure>'


def _table(table: Table) -> str:
    header, rows = table
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    return escape(str(value))
