"""How every figure looks: type, colours, colour maps, and where a panel sits on the page.

The font is the one matplotlib brings along: a layout checked once holds on every machine.
"""
from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Sheet

INK, GREY, FAINT, HATCH = "#1d2126", "#646b73", "#d5d9de", "#ccd2d8"
LAST, SUBJECT, RELATION = "#d9730d", "#1b7f4b", "#7b4fb3"
SUFFICIENCY_INK, NECESSITY_INK = "#1c5a99", "#98235f"

STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.6,
    "axes.titlesize": 9, "axes.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False, "legend.fontsize": 7.5,
    "lines.linewidth": 1.6, "lines.solid_capstyle": "round", "hatch.linewidth": 0.45, "hatch.color": HATCH,
    "figure.facecolor": "white", "savefig.dpi": 200, "pdf.fonttype": 42,
}


def sheet(width: float, height: float) -> Sheet:
    """An empty figure of that many inches, without pyplot's list of open figures."""
    figure = Sheet(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def place(figure: Sheet, left: float, top: float, width: float, height: float, label: str) -> Axes:
    """Axes at that many inches from the sheet's left and top edge."""
    page_width, page_height = figure.get_size_inches()
    box = left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height
    return figure.add_axes(box, label=label)


def write(figure: Sheet, left: float, top: float, text: str, **kwargs) -> None:
    """Text whose top left corner is at that many inches from the sheet's left and top edge."""
    page_width, page_height = figure.get_size_inches()
    figure.text(left / page_width, 1 - top / page_height, text, va=kwargs.pop("va", "top"), **kwargs)


def heading(figure: Sheet, left: float, title: str, subtitle: str) -> None:
    """What the figure shows, and in grey on what it rests. Takes the top 0.6 inches."""
    write(figure, left, 0.12, title, fontsize=11, fontweight="bold")
    write(figure, left, 0.36, subtitle, fontsize=8, color=GREY)


_TO_LMS = np.array([[1, 0.3963377774, 0.2158037573],
                    [1, -0.1055613458, -0.0638541728],
                    [1, -0.0894841775, -1.2914855480]])
_TO_RGB = np.array([[4.0767416621, -3.3077115913, 0.2309699292],
                    [-1.2684380046, 2.6097574011, -0.3413193965],
                    [-0.0041960863, -0.7034186147, 1.7076147010]])


def _oklch_to_rgb(lightness, chroma, hue_degrees):
    """sRGB of OKLab colours (Ottosson 2020), in which equal steps look equal."""
    a, b = chroma * np.cos(np.radians(hue_degrees)), chroma * np.sin(np.radians(hue_degrees))
    linear = np.clip(((np.stack([lightness, a, b], -1) @ _TO_LMS.T) ** 3) @ _TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _arm(hue: float, chroma: float, darkest: float = 0.43, steps: int = 128):
    along = np.linspace(0, 1, steps)
    return _oklch_to_rgb(0.985 - (0.985 - darkest) * along, chroma * along, np.full(steps, hue))


def _diverging(hue: float, chroma: float) -> ListedColormap:
    """White at 0, darker by equal steps to the given hue above it and, as dark, to ochre below it."""
    return ListedColormap(np.concatenate([_arm(hue=75, chroma=0.08)[::-1], _arm(hue, chroma)]))


SUFFICIENCY_MAP = _diverging(hue=256, chroma=0.145)
NECESSITY_MAP = _diverging(hue=352, chroma=0.175)
WIDTH_MAP = ListedColormap(_arm(hue=250, chroma=0.01))
MAPS = {"denoising": SUFFICIENCY_MAP, "noising": NECESSITY_MAP}
DIRECTION_INK = {"denoising": SUFFICIENCY_INK, "noising": NECESSITY_INK}


def ink_on(rgba) -> str:
    """White or dark, whichever is read better on that colour (WCAG's relative luminance)."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]])
    return "white" if linear @ [0.2126, 0.7152, 0.0722] < 0.24 else INK
