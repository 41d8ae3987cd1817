"""Stores with captions: tokens are CLIP's, draws are fixed, and what is amiss is one line."""

import json
import shutil
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dtr_lightning.data import CaptionedLatents, Latents
from dtr_lightning.data.base import ResumableSampler
from dtr_lightning.data.clip import CLIPText
from dtr_lightning.data.store_writer import write_store
from dtr_lightning.errors import Stopped, UserError
from tests.data.captioned_images import TRAIN, VAL, captioned_images, source
from tests.data.stores import bits, contents
from tests.data.tiny_clip import LENGTH, WIDTH, tiny_clip
from tests.data.tiny_vae import tiny_vae


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images with captions, a tiny VAE, a tiny CLIP, and a store."""
    top = tmp_path_factory.mktemp("captioned")
    captioned_images(top)
    tiny_vae(top / "vae", channels=3)
    tiny_clip(top / "clip")
    assert write_store(top / "store", prepared(top)).complete
    return top


def prepared(top, **options):
    return source(top, str(top / "vae"), str(top / "clip"), **options)


@pytest.fixture
def store(made, tmp_path):
    """A store of one's own to damage."""
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path / "store"


def test_tokens_are_those_of_transformers(made):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(made / "clip")
    network = transformers.CLIPTextModel.from_pretrained(made / "clip").eval()
    lines = (made / "store" / "captions.txt").read_text().splitlines()
    tokens = np.load(made / "store" / "tokens.npy")
    offsets = np.load(made / "store" / "caption_offsets.npy")
    assert tokens.shape == (len(lines), LENGTH, WIDTH) and tokens.dtype == np.float16
    assert offsets[-1] == len(lines) and np.diff(offsets[: TRAIN + 1]).tolist()[:4] == [1, 2, 3, 1]
    assert lines[offsets[4] : offsets[5]] == ["a green picture", "number 4 in green"]
    texts = [*lines, ""]
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
    with torch.no_grad():
        expected = network(input_ids=torch.tensor(ids.input_ids)).last_hidden_state
    null = np.load(made / "store" / "null.npy")
    given = torch.from_numpy(np.concatenate([tokens, null[None]])).float()
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    assert ids.input_ids[0][1] != ids.input_ids[3][1] or lines[0][0] == lines[3][0]


def test_a_text_is_encoded_as_it_is_stored(made):
    captions = CaptionedLatents(made / "store").captions
    line = (made / "store" / "captions.txt").read_text().splitlines()[5]
    stored = torch.from_numpy(np.load(made / "store" / "tokens.npy")[5]).float()
    torch.testing.assert_close(captions.encode([line])[0], stored, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(captions.encode([""])[0], captions.null, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_killed_and_gone_on_with_equals_uninterrupted(made, tmp_path, parts):
    folder, stop, seen = tmp_path / "store", Event(), 0

    def report(what, done, total):
        nonlocal seen
        seen += 1
        if seen == parts + 1:
            stop.set()

    with pytest.raises(Stopped):
        write_store(folder, prepared(made), report=report, stop=stop)
    assert write_store(folder, prepared(made)).complete
    assert contents(folder) == contents(made / "store")


def test_stopped_among_captions(made, tmp_path):
    stop = Event()
    with pytest.raises(Stopped):
        write_store(
            tmp_path / "store",
            prepared(made),
            report=lambda what, done, total: what == "captions" and done and stop.set(),
            stop=stop,
        )
    reports = []
    write_store(tmp_path / "store", prepared(made), report=lambda *args: reports.append(args))
    total = len((made / "store" / "captions.txt").read_text().splitlines())
    assert reports[0][:2] == ("images", TRAIN + VAL) and reports[1] == ("captions", 20, total)
    assert contents(tmp_path / "store") == contents(made / "store")


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1)])
@pytest.mark.slow
def test_any_number_of_processes_and_threads_write_the_same_bytes(made, tmp_path, order):
    for rank in order:
        write_store(tmp_path / "store", prepared(made, threads=1 + rank), rank, len(order))
    assert contents(tmp_path / "store") == contents(made / "store")


def test_captions_leave_order_and_flips_as_they_are():
    counts = np.arange(100) % 5 + 1
    plain, told = (ResumableSampler(100, 30, seed=3, captions=c) for c in (None, counts))
    seen = {}
    for step in range(20):
        (order, flips), (indices, flipped, which) = plain.step(step), told.step(step)
        assert np.array_equal(order, indices) and np.array_equal(flips, flipped)
        assert (which >= 0).all() and (which < counts[indices]).all()
        for i, k in zip(indices.tolist(), which.tolist(), strict=True):
            seen.setdefault(i, set()).add(k)
    assert all(len(seen[i]) == 1 for i in range(0, 100, 5))
    assert sum(len(seen[i]) > 1 for i in range(4, 100, 5)) > 15  # six epochs of five captions


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_step(made, workers):
    def batches(start, count, rank=0, world=1, cls=CaptionedLatents):
        data = cls(made / "store", batch_size=8, workers=workers)
        data.seed = 5
        data.trainer = SimpleNamespace(
            global_step=start, accumulate_grad_batches=1, global_rank=rank, world_size=world
        )
        loader = iter(data.train_dataloader())
        return [next(loader) for _ in range(count)]

    whole = batches(0, 8)
    assert whole[0][1].dtype == torch.float16 and whole[0][1].shape == (8, LENGTH, WIDTH)
    for (a, b), (c, d) in zip(whole[5:], batches(5, 3), strict=True):
        assert torch.equal(bits(a), bits(c)) and torch.equal(b, d)
    halves = [batches(3, 1, rank, 2)[0][1] for rank in range(2)]
    assert torch.equal(whole[3][1], torch.stack(halves, 1).flatten(0, 1))
    without = batches(0, 3, cls=Latents)
    assert all(
        torch.equal(bits(a), bits(c)) for (a, _), (c, _) in zip(whole[:3], without, strict=True)
    )


def test_a_batch_has_a_caption_of_each_image(made):
    data = CaptionedLatents(made / "store")
    tokens, split = torch.from_numpy(np.array(data.table.rows)), data.split("val")
    first = data.table.first
    _, labels = split.batch(torch.tensor([2, 0]))
    assert labels.tolist() == [TRAIN + 2, TRAIN] and split[2][1] == TRAIN + 2
    _, told = split.batch(torch.tensor([2, 0, 2]), None, torch.tensor([1, 7, 3]))
    rows = [first[TRAIN + 2] + 1, first[TRAIN], first[TRAIN + 2]]
    assert torch.equal(told, tokens[rows])
    again = data.captions(labels, torch.tensor([1, 7]))
    assert again.dtype == torch.float32 and torch.equal(again, told[:2].float())


def test_prompts_are_fixed(made):
    captions = CaptionedLatents(made / "store").captions
    n = 2 * VAL + 1
    labels, numbers = captions.sample_labels(n), captions.sample_numbers(9, range(n))
    assert labels.tolist() == [*range(TRAIN, TRAIN + VAL)] * 2 + [TRAIN]
    assert numbers.tolist() == [0] * VAL + [1] * VAL + [2]


def test_what_is_said_of_it(made):
    data = CaptionedLatents(made / "store")
    assert data.describe().endswith(f"captions by the text encoder {data.manifest.clip}")
    assert data.class_counts() == [TRAIN] and data.num_classes == 1
    assert data.record()["text"]["shape"] == [LENGTH, WIDTH]
    plain = Latents(made / "store")
    assert plain.captions is None and "text" not in plain.record()


def test_stores_without_captions_are_as_before(made, tmp_path):
    given = prepared(made)
    with_captions = given.manifest.text()
    from dtr_lightning.data import VAE
    from dtr_lightning.data.encoding import EncodedImages

    plain = EncodedImages(given.data, VAE(str(made / "vae")), block=20)
    assert not {"captions", "tokens", "clip"} & json.loads(plain.manifest.text()).keys()
    assert json.loads(with_captions)["captions"] > 0
    write_store(tmp_path / "plain", plain)
    names = {"train.npy", "train_flipped.npy", "train_labels.npy", "val.npy", "val_labels.npy"}
    old, new = contents(tmp_path / "plain"), contents(made / "store")
    assert old.keys() == names | {"manifest.json"}
    assert all(old[name] == new[name] for name in names)
    with pytest.raises(UserError, match="store of another captions: 0, not"):
        write_store(tmp_path / "plain", given)
    with pytest.raises(UserError, match="holds no captions; give --data Latents, or make"):
        CaptionedLatents(tmp_path / "plain")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokens.npy").unlink(), "tokens.npy: No such file"),
        (lambda f: (f / "null.npy").write_bytes(b"x"), "null.npy is damaged"),
        (
            lambda f: np.save(f / "null.npy", np.zeros((LENGTH, 8), np.float16)),
            r"null.npy holds float16 \(10, 8\); the manifest says float16 \(10, 16\)",
        ),
        (
            lambda f: np.save(f / "caption_offsets.npy", np.zeros(TRAIN + VAL + 1, np.int64)),
            "caption_offsets.npy is damaged",
        ),
    ],
)
def test_a_damaged_store_is_one_line(store, damage, message):
    CaptionedLatents(store)
    damage(store)
    with pytest.raises(UserError, match=message) as error:
        CaptionedLatents(store)
    assert "\n" not in str(error.value)


def break_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def other_kind(folder):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 66}
    config = transformers.BertConfig(**sizes, intermediate_size=32)
    transformers.BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "of the text encoder does not exist"),
        (lambda f: (f / "model.safetensors").unlink(), "no text encoder at"),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "no text encoder at"),
        (lambda f: (f / "config.json").write_text("{"), "no text encoder at"),
        (break_tokenizer, r"has 2 tokens, the text encoder 76; restore its files"),
        (other_kind, "is no text encoder of CLIP: it has no "),
    ],
)
def test_a_text_encoder_that_is_none_is_one_line(tmp_path, damage, message):
    folder = tmp_path / "clip"
    tiny_clip(folder)
    assert CLIPText(str(folder)).shape == (LENGTH, WIDTH)
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        _ = CLIPText(str(folder)).parts
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"seed": 1}, {"width": 8}])
def test_another_text_encoder_is_refused(made, tmp_path, options):
    other = tiny_clip(tmp_path / "clip", **options)
    with pytest.raises(
        UserError, match=r"digest \w{12}; these captions are of \w{12}; --data.clip"
    ):
        CaptionedLatents(made / "store", clip=other).captions.encode(["red"])


def test_a_text_encoder_may_be_part_of_a_whole_clip(made, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel.from_pretrained(made / "clip")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text.config.to_dict(), vision_config=vision)
    whole = transformers.CLIPModel(config)
    whole.text_model.load_state_dict(text.state_dict())
    whole.half().save_pretrained(tmp_path / "whole")
    transformers.CLIPTokenizer.from_pretrained(made / "clip").save_pretrained(tmp_path / "whole")
    given = CLIPText(str(tmp_path / "whole")).encode(["a red bus"])
    assert given.dtype == torch.float32
    expected = CLIPText(str(made / "clip")).encode(["a red bus"])
    torch.testing.assert_close(given, expected, rtol=0.02, atol=0.02)
