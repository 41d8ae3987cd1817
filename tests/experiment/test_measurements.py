"""What is measured depends on the network and the index of an image, and on nothing around them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from analysis.measure.probe import Probe
from analysis.probes import affinity, cka, film
from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.parser import resolve
from dtr_lightning.data import Digits
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import notes
from dtr_lightning.experiment.evaluation import draw_labels, evaluate, sample
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.metrics import Features, Scorer
from dtr_lightning.training.callbacks import MetricLogger
from dtr_lightning.training.module import Losses
from dtr_lightning.training.pictures import by_class, columns_of, save_sheet
from tests.conftest import ROOT, TINY
from tests.training.test_resume import DroppingDiT


def made(model="DiT", **options):
    """Returns a tiny experiment whose network answers to everything, and its trainer."""
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | {"model": model} | options)
    experiment = Experiment(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in experiment.module.model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return experiment, experiment.trainer([], [])


def probed(figure, **options):
    def measure(experiment, trainer):
        probe = Probe.on(experiment.module, experiment.data, 8, 0)
        found = figure.measure(probe, figure.CONFIG(images=8, timesteps=2, **options), print)
        return [found.get("affinity", found.get("unbiased"))]

    return measure


def drawn(experiment, trainer):
    labels, data = torch.arange(4), experiment.data
    parts = sample(
        experiment.module, data, experiment.sampler, labels, range(4), experiment.protocol
    )
    return [images for images, _ in parts]


def filmed(experiment, trainer):
    protocol = experiment.protocol
    return film.denoise(experiment.module, experiment.data, torch.arange(2), protocol)[1:3]


MEASUREMENTS = {
    "held-out loss": lambda e, trainer: list(e.val_losses(trainer, e.module).values()),
    "score": lambda e, trainer: [e.evaluate(trainer, e.module, 8, 0)[0]["score"]],
    "samples": drawn,
    "multiply-adds": lambda e, trainer: [e.macs()],
    "cka": probed(cka, batch=4),
    "affinity": probed(affinity),
    "film": filmed,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_no_measurement_depends_on_the_mode_of_the_network(name):
    experiment, trainer = made("tests.training.test_resume.DroppingDiT")
    module, found = experiment.module, []
    for training in (True, False):
        module.train(training)
        module.model.final_layer.train(not training)
        modes = [part.training for part in module.modules()]
        found.append(MEASUREMENTS[name](experiment, trainer))
        assert [part.training for part in module.modules()] == modes
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)
    assert isinstance(module.model, DroppingDiT)
    t = torch.arange(8)
    assert not torch.equal(module.model.train().embed(t), module.model.embed(t))


class Unfrozen(Features):
    """Features whose author forgot `freeze`."""

    name, num_features = "fd_unfrozen", 64

    def forward(self, images):
        return F.dropout(images.flatten(1).float(), 0.5, self.training)


def test_features_are_never_in_training():
    data = Digits()
    images = data.split("val").tensors[0]
    scorer = Scorer(Unfrozen(), data, kid_subsets=0)
    scorer.update(images)
    result = scorer.compute()
    assert result["score"] == pytest.approx(result["floor"])


def as_rank(rank, world):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)


@pytest.mark.parametrize("images", [360, 101, 7])
@pytest.mark.parametrize("options", [{}, {"model": "TextDiT", "data": "DigitsCaptions"}])
def test_the_held_out_loss_is_that_of_any_number_of_processes(images, options, monkeypatch):
    experiment, _ = made(**options)
    whole = experiment.data.splits["val"].tensors
    experiment.data.splits["val"] = TensorDataset(*(part[:images] for part in whole))
    monkeypatch.setattr("dtr_lightning.experiment.experiment.VAL_IMAGES", 300)
    sums = {}
    for world in (1, 2, 3):
        parts = []
        monkeypatch.setattr(
            "dtr_lightning.experiment.experiment.all_reduce_sum",
            lambda trainer, own, parts=parts: parts.append(own) or own,
        )
        for rank in range(world):
            experiment.val_losses(as_rank(rank, world), experiment.module)
        sums[world] = sum(parts)
    assert sums[1][-1, -1] == max(300 // images, 1) * min(images, 300)
    for world in (2, 3):
        assert torch.equal(sums[world][:, -1], sums[1][:, -1])  # how many of each eighth
        torch.testing.assert_close(sums[world], sums[1], rtol=1e-5, atol=1e-6)


def test_a_held_out_loss_depends_on_index_and_seed_alone():
    module = made()[0].module
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9)
    order = torch.tensor([5, 3, 8, 0, 1, 7, 2, 4, 6])

    def losses(*parts, seed=0):
        return module.val_losses(((images[i], labels[i], 100 + i) for i in parts), seed)

    whole, parts = losses(torch.arange(9)), losses(order[:2], order[2:])
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a[order], b)
    assert not torch.allclose(losses(torch.arange(9), seed=1).mse, whole.mse)


@pytest.mark.parametrize("n", [3, 10, 37])
def test_shares_of_processes_are_the_samples_of_one(n):
    experiment, _ = made()
    module, data, protocol = experiment.module, experiment.data, experiment.protocol
    seen = SimpleNamespace(device=torch.device("cpu"), reset=list, describe=dict, compute=dict)
    seen.update = lambda images, labels: None

    def kept(world):
        ranks = [
            evaluate(module, data, experiment.sampler, seen, protocol, n, 20, rank, world)[1:]
            for rank in range(world)
        ]
        return [torch.cat(part) for part in zip(*ranks, strict=True)]

    images, labels = kept(1)
    assert (
        len(images) == min(n, 20)
        and labels.tolist() == draw_labels(data, protocol, n)[:20].tolist()
    )
    for world in (2, 3):
        others, theirs = kept(world)
        assert torch.equal(labels, theirs)
        assert (images.int() - others.int()).abs().max() <= 1  # rounding of sums in other batches


@pytest.mark.parametrize("option", ["n", "every_n", "reference"])
def test_fewer_samples_than_processes_are_refused(tiny, option):
    config = tiny(**{f"evaluation__{option}": 2})
    config["trainer"] |= {"devices": 4, "strategy": "ddp", "accelerator": "cpu"}
    with pytest.raises(UserError, match=rf"evaluation\.{option} 2 cannot be shared by 4 ranks"):
        Experiment(config).trainer([], [])


def test_the_window_of_the_record_is_of_all_processes(monkeypatch):
    """A checkpoint, which one process writes, gives each its own part back, or all to one."""
    first = Losses(*torch.rand(3, 4))
    second = Losses(*(part + 100 for part in first))
    monkeypatch.setattr(
        "dtr_lightning.training.callbacks.gather_all_tensors", lambda x: [x, x + 100]
    )

    def record(rank, world):
        found = MetricLogger(10, None)
        found.setup(as_rank(rank, world), None, "fit")
        return found

    writer = record(0, 2)
    writer.window = [Losses(*(part[i : i + 2] for part in first)) for i in (0, 2)]
    saved = writer.state_dict()
    both = Losses(*map(torch.cat, zip(first, second, strict=True)))
    for place, expected in (((0, 2), first), ((1, 2), second), ((0, 1), both)):
        reader = record(*place)
        reader.load_state_dict(saved)
        assert all(map(torch.equal, reader.window[0], expected))


def labels_of(counts, n, labels="proportional"):
    data = SimpleNamespace(captions=None, num_classes=len(counts), class_counts=lambda: counts)
    return draw_labels(data, EvaluationConfig(labels=labels), n)


COUNTS = [[950, 50], [7, 2, 1], [3, 0, 2], [5], [500] + [1] * 100, [142, 146, 141, 139, 145]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_labels_are_in_the_proportions_of_the_training_images(counts):
    labels = labels_of(counts, 700)
    share = torch.tensor(counts) / sum(counts)
    given = F.one_hot(labels, len(counts)).cumsum(0)
    assert (given - share * torch.arange(1, 701)[:, None]).abs().max() <= 1.1
    for n in (2, 13, 400):
        assert torch.equal(labels_of(counts, n), labels[:n])
    assert torch.equal(labels_of(counts, 50, "balanced"), torch.arange(50) % len(counts))


def test_labels_of_alike_classes_come_in_turn():
    assert torch.equal(labels_of([6] * 7, 40), torch.arange(40) % 7)
    assert labels_of([6] * 7, 3).tolist() == [0, 1, 2]  # fewer samples than classes


class Uneven(Digits):
    """Dark and bright noise, 950 to 50."""

    image_size, num_classes, class_names = 4, 2, ("dark", "bright")

    def __init__(self, batch_size: int = 8):
        super().__init__(batch_size)
        labels = torch.tensor([1] * 50 + [0] * 950)
        halves = labels, labels[::5]
        self.splits = {
            name: TensorDataset(self.images(own, seed), own)
            for seed, (name, own) in enumerate(zip(("train", "val"), halves, strict=True))
        }

    def images(self, labels, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = 25 * torch.randn(len(labels), 1, 4, 4, generator=generator)
        return (noise + 60 + 140 * labels[:, None, None, None]).clamp(0, 255).to(torch.uint8)


class Pixels(Features):
    name, num_features = "fd_pixels", 16

    def __init__(self):
        super().__init__()
        self.freeze()

    def forward(self, images):
        return images.flatten(1).float()


def test_perfect_samples_of_uneven_classes_score_near_the_floor():
    data, found = Uneven(), {}
    assert data.class_counts() == [950, 50]
    for labels in ("proportional", "balanced"):
        given = draw_labels(data, EvaluationConfig(labels=labels), 400)
        scorer = Scorer(Pixels(), data, kid_subsets=0)
        scorer.update(data.images(given, seed=2))
        found[labels] = scorer.compute()
    assert found["proportional"]["score"] < 3 * found["proportional"]["floor"]
    assert found["balanced"]["score"] > 20 * found["balanced"]["floor"]


class Listed(Uneven):
    """A data set of somebody's own, read pair by pair."""

    def split(self, name):
        images, labels = self.splits[name].tensors
        return [(image, int(label)) for image, label in zip(images, labels, strict=True)]


def test_the_classes_of_any_data_are_counted():
    assert Listed().class_counts() == [950, 50]
    one = Listed()
    one.num_classes = 1
    assert one.class_counts() == [1000]
    one.splits["train"].tensors[1][0] = 7
    with pytest.raises(UserError, match="Listed has a label 7, but 2 classes"):
        data = Listed()
        data.splits = one.splits
        data.class_counts()


@pytest.mark.parametrize("labels", ["proportional", "balanced"])
def test_the_protocol_and_a_note_tell_the_labels(labels):
    experiment, _ = made(
        **{
            "data": f"{__name__}.Uneven",
            "evaluation.labels": labels,
            "features": f"{__name__}.Pixels",
        }
    )
    assert experiment.describe()["labels"] == labels
    known = {"protocol": experiment.describe()} | experiment.scoring() | experiment.facts()
    told = notes.notes_of(known).get("unbalanced", "")
    assert bool(told) is (labels == "balanced") is ("50 to 950" in told)
    with pytest.raises(UserError, match=r"unknown evaluation\.labels 'even'; valid: prop"):
        EvaluationConfig(labels="even")


def test_a_sheet_has_a_column_for_each_class():
    labels = torch.tensor([0, 0, 1, 0, 0])
    images = (labels * 10 + torch.arange(5))[:, None, None, None].to(torch.uint8)
    assert by_class(images, labels, 2).flatten().tolist() == [0, 12]
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    images = images.new_zeros(6, 1, 1, 1) + labels[:, None, None, None].to(torch.uint8)
    assert by_class(images, labels, 2).flatten().tolist() == [0, 1]
    labels[:] = 0
    assert by_class(images * 0, labels, 2).flatten().tolist() == [0, 255]
    for classes in range(1, 20):
        for n in (60, 64, 7 * classes):
            columns = columns_of(n, classes)
            assert columns % classes == 0 or not 2 <= classes <= 16
            assert n % columns == 0 or n % classes or classes == 1 or n < 5
    assert torch.equal(by_class(images, labels, 1), images)


def test_a_sheet_names_the_classes_above_their_columns(tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    for names, rows in ((["cat", "a name that is far too long for a column"], 2), ([""] * 20, 2)):
        save_sheet(str(tmp_path / "a.png"), images, names)
        with Image.open(tmp_path / "a.png") as opened:
            sheet = np.asarray(opened)
        header = sheet.shape[0] - (66 * rows + 2)
        assert sheet.shape[1] == 10 * 66 + 2 and header == (20 if len(names) == 2 else 0)
        assert not (sheet[header:] == 255).all(-1)[2:-2, 2:-2].all(0)[:64].any()
        if header:  # black letters over every column
            assert all((sheet[:header, 66 * i : 66 * i + 66] < 99).any() for i in range(10))
