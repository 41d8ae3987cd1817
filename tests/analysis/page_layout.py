"""What stands on the page of a figure."""

__all__ = ["caption_of", "on_page"]

from analysis.drawing.style import styled


@styled
def on_page(figure):
    """Returns whether nothing that is drawn leaves the page, in inches."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.005


def caption_of(figure):
    """Returns the small lines below a figure as one."""
    return " ".join(figure.texts[-1].get_text().split())
