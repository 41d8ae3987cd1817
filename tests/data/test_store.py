"""Laws of stores: whoever wrote them, and however often they died, the same bytes or one line."""

import contextlib
import errno
import itertools
import json
import os
import pickle
import resource
import signal
import subprocess
import time
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch

from dtr_lightning.data.store import StoredSplit, read_begun, read_manifest
from dtr_lightning.data.store_writer import write_store
from dtr_lightning.errors import Stopped, UserError
from tests.data.stores import RandomRows, contents


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that one process wrote without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert write_store(folder, RandomRows()).complete
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A store of one's own to damage."""
    folder = tmp_path / "store"
    folder.mkdir()
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    return folder


def test_what_is_read_is_what_was_written(whole):
    source = RandomRows()
    arrays = {"train.npy", "train_flipped.npy", "train_labels.npy", "val.npy", "val_labels.npy"}
    assert contents(whole).keys() == arrays | {"manifest.json"}
    manifest = read_manifest(whole)
    for name, n in (("train", 200), ("val", 30)):
        rows = source.rows(name, range(n))
        assert np.array_equal(np.load(whole / f"{name}.npy"), rows)
        split = StoredSplit(whole, manifest, name)
        assert len(split) == n and split[7][1] == 1
        assert torch.equal(split[7][0], torch.from_numpy(rows[7]))


@pytest.mark.parametrize("codec", ["VAE", "Pixels"])
def test_a_batch_has_the_mirrored_images_where_the_flips_say_so(tmp_path, codec):
    source = RandomRows(codec=codec)
    manifest = write_store(tmp_path / "store", source)
    split = StoredSplit(tmp_path / "store", manifest, "train")
    indices = torch.tensor([150, 3, 3, 199, 0, 64])
    flips = torch.tensor([True, False, True, True, False, False])
    rows = torch.from_numpy(source.rows("train", indices.tolist()))
    stored, labels = split.batch(indices)
    assert torch.equal(stored, rows) and torch.equal(labels, indices % 3)
    stored, labels = split.batch(indices, flips)
    mirrored = -rows if codec == "VAE" else rows.flip(-1)
    assert torch.equal(stored, torch.where(flips[:, None, None, None], mirrored, rows))
    assert stored.dtype == rows.dtype and labels.dtype == torch.int64


def test_a_worker_opens_the_files_itself(whole):
    split = StoredSplit(whole, read_manifest(whole), "train")
    sent = pickle.dumps(split)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).batch(torch.tensor([5]))[0][0], split[5][0])


def test_a_process_may_have_no_share(tmp_path):
    def report(what, done, total):
        raise AssertionError("there is nothing to tell")

    write_store(tmp_path / "store", RandomRows(), 9, 10, report)
    write_store(tmp_path / "store", RandomRows())
    assert read_manifest(tmp_path / "store").complete


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1)])
def test_any_number_of_processes_write_the_same_bytes(whole, tmp_path, order):
    folder, world = tmp_path / "store", len(order)
    for rank in order:
        with pytest.raises(UserError, match="not complete") if rank != order[0] else _nothing():
            read_manifest(folder)
        written = write_store(folder, RandomRows(), rank, world)
        assert written.complete == (rank == order[-1])
    assert contents(folder) == contents(whole)


def _nothing():
    return pytest.raises(UserError, match="no store")


def test_the_share_of_a_lost_process_is_made_up_for_by_others(whole, tmp_path):
    write_store(tmp_path / "store", RandomRows(), 1, 3)
    for rank in range(2):
        write_store(tmp_path / "store", RandomRows(), rank, 2)
    assert contents(tmp_path / "store") == contents(whole)


def test_killed_five_times_is_as_uninterrupted(whole, tmp_path):
    """Each process is killed by SIGKILL, at some time within the writing of its n-th part."""
    folder = tmp_path / "store"

    def child(parts):
        if pid := os.fork():
            return pid
        seen = itertools.count()

        def slow(split, part):
            if next(seen) == parts:
                (tmp_path / f"reached-{parts}-{os.getpid()}").touch()
                time.sleep(60)

        write_store(folder, RandomRows(before=slow))
        os._exit(0)

    for parts in (0, 1, 1, 2, 1):
        pid = child(parts)
        deadline = time.monotonic() + 60
        while not (tmp_path / f"reached-{parts}-{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with pytest.raises(UserError, match="not complete"):
            read_manifest(folder)
    write_store(folder, RandomRows())
    assert contents(folder) == contents(whole)


def test_what_is_there_is_not_encoded_again(tmp_path):
    stop, seen = Event(), []

    def note(split, part):
        seen.append((split, int(part[0])))
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Stopped):
        write_store(tmp_path / "store", RandomRows(before=note), stop=stop)
    reports = []
    write_store(
        tmp_path / "store", RandomRows(before=note), report=lambda *args: reports.append(args)
    )
    # block 0 is images 0 to 69, in parts of 64 and 6; block 1 was begun
    assert seen[:3] == [("train", 0), ("train", 64), ("train", 70)]
    assert seen[3:6] == [("train", 70), ("train", 134), ("train", 140)]
    assert reports[0] == ("images", 70, 230) and reports[-1] == ("images", 230, 230)
    before = len(seen)
    assert write_store(tmp_path / "store", RandomRows(before=note)).complete
    assert len(seen) == before


def test_a_part_that_was_half_written_is_written_again(whole, tmp_path):
    folder = tmp_path / "store"
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        write_store(folder, RandomRows(), stop=stop)
    with (folder / "train.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"half of a part")
    write_store(folder, RandomRows())
    assert contents(folder) == contents(whole)


def test_a_file_may_not_grow_beyond_a_limit(whole, tmp_path):
    folder, (soft, hard) = tmp_path / "store", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"no room in .*store: File too large; .* goes on"):
            write_store(folder, RandomRows())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write_store(folder, RandomRows())
    assert contents(folder) == contents(whole)


def test_a_disk_that_is_full(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(UserError, match=r"no room in .*: No space left on device; make room"):
            write_store(disk / "store", RandomRows())
        assert not read_begun(disk / "store").complete
        larger = ["mount", "-o", "remount,size=2m", str(disk)]
        assert subprocess.run(larger, capture_output=True).returncode == 0
        write_store(disk / "store", RandomRows())
        assert contents(disk / "store") == contents(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_failure_of_the_disk_is_no_mistake(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_store(tmp_path / "store", RandomRows())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"train": 201}, "another train: 200, not 201"),
        ({"shape": (2, 8, 8)}, r"another shape: \(2, 4, 4\), not \(2, 8, 8\)"),
        ({"vae": "ba9876543210"}, "another vae: 0123456789ab, not ba9876543210"),
        ({"source_digest": "x"}, "another source digest"),
    ],
)
def test_a_store_goes_on_as_it_was_begun(tmp_path, other, message):
    source = RandomRows()
    write_store(tmp_path / "store", source, 0, 2)
    source.manifest = replace(source.manifest, **other)
    with pytest.raises(UserError, match=message):
        write_store(tmp_path / "store", source, 1, 2)
    source.manifest = replace(RandomRows().manifest, source="elsewhere", vae_path="/moved")
    assert write_store(tmp_path / "store", source, 1, 2).vae_path == "/nowhere"


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="there already and no store"):
        write_store(tmp_path, RandomRows())
    assert contents(tmp_path) == {"thesis.tex": b"dear"}


def test_the_manifest_may_be_on_its_way_from_another_process(whole, tmp_path):
    (tmp_path / ".part-1-manifest.json").touch()
    write_store(tmp_path, RandomRows())
    assert contents(tmp_path) == contents(whole)  # without it, once all is there


def edit(folder, **changes):
    file = folder / "manifest.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | changes))


def opened(folder):
    manifest = read_manifest(folder)
    return [StoredSplit(folder, manifest, name) for name in ("train", "val")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "is no store: it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[1]"), "version None; valid: 1"),
        (lambda f: edit(f, version=2), "version 2; valid: 1"),
        (lambda f: edit(f, train=199), "edited by hand"),
        (lambda f: edit(f, class_names=["x", "y", "z"]), "edited by hand"),
        (lambda f: edit(f, note="mine"), "edited by hand"),
        (lambda f: edit(f, digest="000000000000"), "edited by hand"),
        (lambda f: os.truncate(f / "train.npy", 9000), r"train.npy has 9,000 bytes; expected 25,"),
        (lambda f: os.truncate(f / "val.npy", 3), "val.npy is damaged"),
        (lambda f: (f / "train_flipped.npy").unlink(), "train_flipped.npy: No such file"),
        (
            lambda f: np.save(f / "val_labels.npy", np.zeros(29, dtype=np.int64)),
            r"val_labels.npy holds int64 \(29,\); the manifest says int64 \(30,\)",
        ),
        (
            lambda f: np.save(f / "val.npy", np.zeros((30, 4, 4, 4), dtype=np.float32)),
            r"val.npy holds float32 .*the manifest says float16",
        ),
    ],
)
def test_a_damaged_store_is_one_line(copy, damage, message):
    assert opened(copy)
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        opened(copy)
    assert "\n" not in str(error.value)


def test_files_of_a_begun_store_that_were_cut_are_told(tmp_path):
    write_store(tmp_path / "store", RandomRows(), 0, 2)
    os.truncate(tmp_path / "store" / "train.npy", 5000)
    with pytest.raises(UserError, match=r"train\.npy has 5,000 bytes; expected"):
        write_store(tmp_path / "store", RandomRows(), 1, 2)


def test_of_two_commands_at_once_one_writes_and_the_other_says_so(whole, tmp_path):
    """The second one comes at every part that the first one writes."""
    folder, refused = tmp_path / "store", []

    def meanwhile(split, part):
        if os.fork():
            refused.append(os.waitstatus_to_exitcode(os.wait()[1]))
            return
        try:
            write_store(folder, RandomRows())
        except UserError as error:
            os._exit(2 if "is being written by another process" in str(error) else 3)
        os._exit(0)

    assert write_store(folder, RandomRows(before=meanwhile)).complete
    assert len(refused) == 6 and {*refused} == {2}
    assert contents(folder) == contents(whole)
    assert write_store(folder, RandomRows()).complete  # and now finds it done


def test_whoever_begins_at_the_end_of_another_finds_it_done(whole, tmp_path):
    """Many identical commands, each of which begins at some moment of the others."""
    folder = tmp_path / "store"
    children = []
    for i in range(8):
        if not (pid := os.fork()):
            code = 3
            with contextlib.suppress(Exception):
                time.sleep(0.004 * i)
                try:
                    code = 0 if write_store(folder, RandomRows()).complete else 1
                except UserError:
                    code = 2
            os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert 0 in codes and {*codes} <= {0, 2}
    assert contents(folder) == contents(whole)


def test_a_complete_store_on_a_disk_for_reading_only_is_found_done(copy):
    copy.chmod(0o555)
    try:
        assert write_store(copy, RandomRows()).complete
        assert not (copy / ".lock").exists()
    finally:
        copy.chmod(0o755)
