"""What our pages are made with: templates filled to one self-contained text, and numbers as people read them.

Everything is inside, Plotly's JavaScript too (4.8 MB): page_head.html.j2 keeps the browser from asking anything outside, and
page_charts.html.j2 draws the charts. Jinja escapes in HTML, `tojson` in scripts.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

Chart = dict[str, Any]  # Plotly's JSON; a colour is the name of a CSS variable

UNKNOWN, MINUS = "\u2013", "\u2212"


def fill(template: str, *, charts: dict[str, Chart], **values: Any) -> str:
    """One of the templates here, with Plotly inside."""
    plotly = Markup(get_plotlyjs())  # Plotly's own text; it holds no "</script"
    return _templates().get_template(template).render(charts=_finite(charts), plotly=plotly, **values)


@cache
def _templates() -> Environment:
    environment = Environment(loader=PackageLoader("raypipe", "ops"), autoescape=True, undefined=ChainableUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    for show in (count, fixed, signed, percent, hundredths, short, seconds, size):
        environment.filters[show.__name__] = show
    return environment


def count(value: Any) -> str:
    return f"{value:,.0f}" if is_number(value) else UNKNOWN


def fixed(value: Any, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else UNKNOWN


def signed(value: Any, digits: int = 3) -> str:
    return f"{value:+,.{digits}f}".replace("-", MINUS) if is_number(value) else UNKNOWN


def percent(value: Any) -> str:
    return f"{100 * value:.1f}\u00a0%" if is_number(value) else UNKNOWN


def hundredths(value: Any) -> str:
    """A share in a column whose head says %."""
    return f"{100 * value:.0f}" if is_number(value) else UNKNOWN


def short(value: Any) -> str:
    """Three digits that count, never an exponent: 0.0312, 3.14, 12.5, 1,234."""
    if not is_number(value):
        return UNKNOWN
    digits = min(max(2 - math.floor(math.log10(abs(value))), 0), 6) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: Any) -> str:
    if not is_number(value):
        return UNKNOWN
    minutes = round(value / 60)
    if value >= 3600:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min"


def size(value: Any) -> str:
    """Decimal units, as disks and buckets are sold."""
    if not is_number(value):
        return UNKNOWN
    power = min(int(math.log10(max(value, 1)) / 3), 4)
    return f"{short(value / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def is_number(value: Any) -> bool:
    return value is not None and not isinstance(value, Undefined) and math.isfinite(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; Plotly draws null as a gap."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
