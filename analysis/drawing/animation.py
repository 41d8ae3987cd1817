"""Writes animations as GIF, and as MP4 where ffmpeg is installed."""

__all__ = ["Film", "write_film"]

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.animation import FFMpegWriter, PillowWriter
from matplotlib.figure import Figure

from dtr_lightning.rundir.atomic import writing

PER_SECOND = 10
DPI = 100


class Film(NamedTuple):
    """A figure, a function that makes it show frame i, and the order of the frames."""

    figure: Figure
    show: Callable[[int], None]
    frames: list[int]


def write_film(film: Film, directory: Path, name: str) -> list[Path]:
    """Writes NAME.gif, and NAME.mp4 if ffmpeg is there; returns their paths."""
    writers = {"gif": PillowWriter(PER_SECOND)}
    if FFMpegWriter.isAvailable():
        writers["mp4"] = FFMpegWriter(PER_SECOND)
    film.show(film.frames[0])
    film.figure.draw_without_rendering()
    film.figure.set_layout_engine("none")  # laid out once: nothing jumps
    paths = []
    for suffix, writer in writers.items():
        paths.append(directory / f"{name}.{suffix}")
        with writing(paths[-1]) as part, writer.saving(film.figure, str(part), DPI):
            for i in film.frames:
                film.show(i)
                writer.grab_frame()
    return paths
