"""Charts as SVG, made by the server: shapes and classes, no styles and no scripts. Pure."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 720, 160
_TOP = 16


def stacked(series: Mapping[str, Sequence[float]], label: str) -> Markup:
    """Areas on top of each other, each with the class of its name; all series have the same length."""
    length = max(map(len, series.values()), default=0)
    sums = [0.0] * length
    layers: list[tuple[str, list[float], list[float]]] = []
    for name, values in series.items():
        upper = [low + value for low, value in zip(sums, values, strict=True)]
        if any(values):
            layers.append((name, sums, upper))
        sums = upper
    most = _round_up(max(sums, default=0.0))
    shapes = Markup("").join(
        Markup('<polygon class="o-{}" points="{} {}"><title>{}</title></polygon>').format(
            name, _points(upper, most), " ".join(reversed(_points(lower, most).split())), name
        )
        for name, lower, upper in reversed(layers)
    )
    lines = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, y, y)
        for y in (_TOP, (HEIGHT + _TOP) / 2, HEIGHT)
    )
    # The drawing is stretched to its place, so the numbers are not in it.
    return Markup(
        '<div class="plot"><svg viewBox="0 0 {} {}" role="img" aria-label="{}" preserveAspectRatio="none">{}{}</svg>'
        '<span class="most">{}</span><span class="half">{}</span></div>'
    ).format(WIDTH, HEIGHT, label, lines, shapes, f"{most:,.4g}", f"{most / 2:,.4g}")


def spark(values: Sequence[float], label: str) -> Markup:
    """A small line without axes; the highest value is at the top."""
    most = max(values, default=0.0) or 1.0
    steps = max(1, len(values) - 1)
    points = " ".join(f"{100 * n / steps:.1f},{21 - 18 * value / most:.1f}" for n, value in enumerate(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{}" preserveAspectRatio="none">'
        '<polygon points="0,24 {} 100,24"/><polyline points="{}"/></svg>'
    ).format(label, points, points)


def bar(share: float, label: str) -> Markup:
    """How far something has come, from 0 to 1."""
    width = round(100 * min(1.0, max(0.0, share)), 1)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 4" role="img" aria-label="{}" preserveAspectRatio="none">'
        '<rect class="whole" width="100" height="4"/><rect class="done" width="{}" height="4"/></svg>'
    ).format(label, width)


def _points(values: Sequence[float], most: float) -> str:
    steps = max(1, len(values) - 1)
    height = HEIGHT - _TOP
    return " ".join(f"{WIDTH * n / steps:.1f},{HEIGHT - height * value / most:.1f}" for n, value in enumerate(values))


def _round_up(value: float) -> float:
    """The next number that is easy to read: 1, 2 or 5 times a power of ten."""
    step = 1.0
    while step < value:
        step *= 2 if str(step)[0] in "15" else 2.5
    return step
