"""Text of any script in figures: installed fonts give the letters that DejaVu Sans lacks."""

__all__ = ["FAMILY", "families", "give_fonts", "printable", "short", "width_of"]

from functools import cache
from unicodedata import east_asian_width

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FAMILY = "DejaVu Sans"  # comes with matplotlib, so every machine has it
SYMBOLS = ("Last Resort", "STIX", "cm", "DejaVu")  # matplotlib's own: boxes, and no letters more


def printable(name: str) -> str:
    """Returns a name on one line; a character that no font shows, such as a tab, becomes a box."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def width_of(text: str) -> int:
    """Returns the letters of the longest line; a letter of a wide script counts as two."""
    lines = text.split("\n")
    return max(sum(1 + (east_asian_width(c) in "WF") for c in line) for line in lines)


def short(name: str, letters: int) -> str:
    """Returns a printable name of at most so many letters, cut with an ellipsis if it is longer."""
    name = printable(name)
    if width_of(name) <= letters:
        return name
    while width_of(name) >= letters:
        name = name[:-1]
    return f"{name}…"


@cache
def _letters(path: str) -> frozenset[int]:
    """Returns the code points that a font has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _rank(font: FontEntry) -> tuple:
    """Puts upright sans-serif fonts of ordinary weight first."""
    weight = font.weight if isinstance(font.weight, int) else 400
    return font.style != "normal", abs(weight - 400), "Sans" not in font.name, font.name


def families(text: str) -> list[str]:
    """Returns DejaVu Sans, and the installed fonts that have the letters which it lacks."""
    file = next(font.fname for font in fontManager.ttflist if font.name == FAMILY)
    missing = {ord(c) for c in text if c.isprintable()} - _letters(file)
    names = [FAMILY]
    for font in sorted(fontManager.ttflist, key=_rank) if missing else ():
        if not font.name.startswith(SYMBOLS) and font.name not in names:
            if more := missing & _letters(font.fname):
                missing -= more
                names.append(font.name)
        if not missing:
            break
    return names


def give_fonts(figure: Figure) -> None:
    """Gives all text of a figure the fonts that have its letters, and lays the figure out."""
    figure.draw_without_rendering()  # makes the labels of ticks
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    names = families("".join(text.get_text() for text in texts))
    if len(names) > 1:
        for text in texts:
            if FAMILY in text.get_fontfamily():
                text.set_fontfamily(names)
        figure.draw_without_rendering()
