"""Draws the documentation's bar chart as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

_WIDTH, _ROW, _LABEL, _BARS = 760, 28, 190, 440


def write(path: Path, title: str, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Write panels of horizontal bars, by heading and then by label. The first bar of each panel is highlighted."""
    parts: list[str] = []
    y = 34
    for heading, values in panels.items():
        parts.append(f'<text class="heading" x="16" y="{y}">{escape(heading)}</text>')
        y += 14
        most = max(values.values())
        for number, (label, value) in enumerate(values.items()):
            length = max(1.0, value / most * _BARS)
            parts.append(f'<text x="{_LABEL - 8}" y="{y + 16}" text-anchor="end">{escape(label)}</text>')
            parts.append(
                f'<rect class="{"peer" if number else "own"}" x="{_LABEL}" y="{y + 3}" width="{length:.1f}" height="18"/>'
            )
            parts.append(f'<text x="{_LABEL + length + 8:.1f}" y="{y + 16}">{value:,.0f}</text>')
            y += _ROW
        y += 26
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y - 20}" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>text{font:13px sans-serif;fill:#333}.heading{font-weight:bold}.own{fill:#0a7d4f}.peer{fill:#9aa5b1}\n"
        "rect.back{fill:#fff}</style>\n"
        '<rect class="back" width="100%" height="100%"/>\n' + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )
