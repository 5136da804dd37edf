"""A curve as a small drawing inside the page (SVG): no script, no outside file; colours are the style sheet's."""

from __future__ import annotations

from html import escape

from fedbonsai.dashboard.runs import Curve

WIDTH, HEIGHT = 320, 96
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 18  # room for the figures at the axes


def drawing(curve: Curve) -> str:
    """The drawing, with its extreme values in words for who cannot see it.

    Args:
        curve: at least two points.
    """
    rounds, values = zip(*curve.points, strict=True)
    low, high, first, last = min(values), max(values), rounds[0], rounds[-1]
    spread = (high - low) or 1.0

    def x(round: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (round - first) / (last - first)

    def y(value: float) -> float:
        part = (value - low) / spread if high > low else 0.5
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part

    line = " ".join(f"{x(round):.1f},{y(value):.1f}" for round, value in curve.points)
    told = f"{curve.name}: {values[0]:.4g} in round {first}, {values[-1]:.4g} in round {last}; {curve.better} is better"
    base = HEIGHT - BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}"><title>{escape(told)}</title>'
        f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 4}" y="{TOP + 8}" class="end">{high:.3g}</text>'
        + (f'<text x="{LEFT - 4}" y="{base}" class="end">{low:.3g}</text>' if high > low else "")
        + f'<text x="{LEFT}" y="{HEIGHT - 4}">{first}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" class="end">{last}</text>'
        f'<polyline class="curve" points="{line}"/>'
        f'<circle class="dot" cx="{x(last):.1f}" cy="{y(values[-1]):.1f}" r="3"/></svg>'
    )
