"""The film of a sampled run: what it shows of every moment, and the files that it becomes."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from analysis.drawing import animation
from analysis.drawing.style import save, styled
from analysis.probes import film
from analysis.read.runs import read
from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.parser import resolve
from dtr_lightning.data import Digits, to_uint8
from dtr_lightning.diffusion.samplers import DDIM, Euler, IndexedNoise
from dtr_lightning.experiment import fit
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.load import TrainedRun
from dtr_lightning.routing.masks import dtr
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.page_layout import on_page
from tests.analysis.synthetic_runs import make_run
from tests.conftest import ROOT, TINY

LABELS = torch.tensor([0, 5])


def finished(root):
    return read(find_runs([root]), records=False).finished


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    plain = {**TINY, "trainer.max_steps": 2, "evaluation.every": 0}
    for name in ("DTR", "RTR", "NoRouting"):
        config = resolve(ROOT / "configs" / "digits.yaml", plain | {"router": name})
        fit.run(config, root / name)
    return root


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.slow
def test_moments_end_at_the_sample_and_x0_explains_x_t(runs, scale):
    trained = TrainedRun(Run(runs / "DTR"), Run(runs / "DTR").config)
    protocol = EvaluationConfig(n=8, guidance=scale)
    moments = film.denoise(trained.module, trained.experiment.data, LABELS, protocol)
    assert len(moments.t) == film.FRAMES and moments.t == sorted(moments.t, reverse=True)
    assert (moments.t[0], moments.t[-1]) == (999, 0)
    assert moments.x.shape == moments.x0.shape == (film.FRAMES, 2, 1, 8, 8)
    start = IndexedNoise(0, LABELS.tolist(), (1, 8, 8))()
    assert torch.equal(moments.x[0], to_uint8(start))
    if scale == 1:
        model = trained.module.model
        end = DDIM(film.FRAMES)(
            lambda x, t: model(x, t, LABELS), start, trained.module.diffusion, lambda: start
        )
        assert (moments.x0[-1].int() - to_uint8(end).int()).abs().max() <= 1


def test_flow_matching_is_filmed_by_euler_steps(tiny):
    config = tiny(router="DTR")
    config["diffusion"] = {"class_path": "FlowMatching", "init_args": {}}
    config["sampler"] = {"class_path": "Euler", "init_args": {"steps": 3}}
    module = Experiment(config).module
    moments = film.denoise(module, Digits(), LABELS, EvaluationConfig(n=8))
    assert (moments.t[0], len(moments.t)) == (pytest.approx(999), film.FRAMES)
    noise = IndexedNoise(0, LABELS.tolist(), (1, 8, 8))
    end = Euler(film.FRAMES)(
        lambda x, t: module.model(x, t, LABELS), noise(), module.diffusion, noise
    )
    assert (moments.x0[-1].int() - to_uint8(end).int()).abs().max() <= 1


@pytest.mark.slow
def test_gif_still_and_numbers_of_the_dtr_run(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "FRAMES", 6)
    monkeypatch.setattr(film, "HELD", 2)
    drawing = film.draw(finished(runs))
    assert set(drawing.numbers.run) == {"DTR"} and drawing.note.startswith("of DTR;")
    written = save(drawing, tmp_path, "film")
    names = [path.name for path in written]
    assert names[:4] == ["film.pdf", "film.png", "film.csv", "film.gif"]
    with Image.open(written[3]) as gif:
        shades = []
        for i in range(gif.n_frames):
            gif.seek(i)
            shades.append(np.asarray(gif.convert("L"), float))
        assert gif.n_frames >= 6 and gif.info["loop"] == 0
    assert all(np.abs(a - b).max() > 50 for a, b in pairwise(shades[:6]))
    assert written[3].stat().st_size < 2e6
    table = pd.read_csv(written[2])
    assert table.frame.nunique() == 6 and table.groupby("frame").label.nunique().eq(4).all()
    tables = TrainedRun(Run(runs / "DTR"), Run(runs / "DTR").config).module.model.router.table(0)
    for row in table.itertuples():
        active = tables[int(row.t)].nonzero().flatten()
        assert (row.active, row.first, row.last) == (len(active), active[0], active[-1])


@pytest.mark.slow
def test_a_frame_shows_its_moment(runs, monkeypatch):
    monkeypatch.setattr(film, "FRAMES", 4)
    shown = film.draw(finished(runs)).film
    masks, strip, first = shown.figure.axes[:3]
    for i, t in ((0, 999), (3, 0)):
        shown.show(i)
        assert masks.get_lines()[0].get_ydata() == [t + 0.5] * 2
        assert (strip.images[0].get_array()[0] == masks.images[0].get_array()[t]).all()
        assert strip.get_title(loc="left").startswith(f"t = {t:3d}")
    assert first.images[0].get_array().shape == (8, 8, 3)
    assert shown.frames == [0, 1, 2, 3] + [3] * film.HELD


@pytest.mark.slow
def test_what_cannot_be_filmed_is_told(runs, tmp_path):
    none = [run for run in finished(runs) if run.path.name == "NoRouting"]
    assert "table of masks" in film.needs(none)
    make_run(tmp_path / "synthetic", "DTR", {"alpha": 4.0, "beta": 0.8})
    assert "checkpoint" in film.needs(finished(tmp_path))
    by_name = {run.path.name: run for run in finished(runs)}
    assert film.needs([by_name["RTR"]]) is None and film._candidates(finished(runs))[0] is not None


def test_without_ffmpeg_there_is_no_mp4_and_with_it_there_is_one(tmp_path, monkeypatch):
    class Fake(PillowWriter):
        @classmethod
        def isAvailable(cls):
            return True

        def finish(self):
            self._frames[0].save(self.outfile, format="GIF")

    figure = Figure(figsize=(1, 1))
    line = figure.add_subplot().plot([0, 1])[0]
    moving = animation.Film(figure, lambda i: line.set_ydata([0, i]), [0, 1])
    for available, suffixes in ((False, [".gif"]), (True, [".gif", ".mp4"])):
        monkeypatch.setattr(Fake, "isAvailable", classmethod(lambda cls, a=available: a))
        monkeypatch.setattr(animation, "FFMpegWriter", Fake)
        paths = animation.write_film(moving, tmp_path, "x")
        assert [path.suffix for path in paths] == suffixes and all(p.is_file() for p in paths)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_still_tells_its_guess_and_fills_its_page(count):
    x = torch.zeros(6, count, 3, 8, 8, dtype=torch.uint8)
    moments = film.Moments([999, 800, 600, 400, 200, 0], x, x, torch.arange(count))
    figure = styled(film._still)(dtr(1000, 64).numpy(), moments, "DTR")
    assert on_page(figure)
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert texts.count("guess of x$_0$") == film.STILLS
    bottom = min(ax.get_window_extent().y0 for ax in figure.findobj(Axes) if ax.images)
    assert bottom / figure.dpi < 0.4  # inches
