"""A sweep's YAML, broken in every way: it is valid, or one line and exit code 2; never a traceback.

By hand: `python -m tests.sweeps.test_fuzz 2000` tries as many mutations of each shipped sweep.
"""

import contextlib
import copy
import datetime
import random
import re
import sys
import tempfile
import traceback
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import sweep as command
from dtr_lightning.config import parser as config
from sweeps.engine import driver, plan, preview, recipe
from sweeps.engine.form import GridForm, SearchForm
from sweeps.engine.workers import Machine
from tests.conftest import slow_except
from tests.sweeps import standin

EACH = 50  # mutations of each shipped sweep
REAL = 10  # of so many that are sound in form, one is resolved as it will be trained
TEXTS = [
    *(
        "\t",
        "\x00",
        "\x07",
        "\\",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "'",
        '"',
        "#",
        "&a ",
        "*a",
        "!!set ",
    ),
    *(
        "- ",
        "? ",
        "| ",
        "> ",
        "%",
        "@",
        "`",
        "---\n",
        "...\n",
        "\n",
        "    ",
        "é",
        "\ufeff",
        "\u2028",
    ),
    *("!!python/name:os.system ", "!!binary aa", "<<: ", "1e999", "0x" + "f" * 5000, "9" * 5000),
    *("&a [*a]", "[" * 3000, "2020-01-01", ".nan", "-.inf", "~", '"\\ud800"', '"a\\nb"'),
]
VALUES = [
    *(0, -1, 1, 3, 2.5, -0.5, 10**9, 10**30, 10**400, 1e300, float("nan"), float("inf")),
    *(None, True, False, "", "word", "two words", "a\nb", "a\0b", "x" * 2000, "minimize", "../.."),
    *(
        [],
        [[]],
        [[[]]],
        {},
        {"": {}},
        {"a": None},
        [None],
        ["a", 1],
        [1, 1],
        [float("nan")],
        ["", {}],
    ),
    *(
        datetime.date(2020, 1, 1),
        [datetime.date(2020, 1, 1)],
        [[datetime.date(2020, 1, 1)]],
        b"\xff",
    ),
    *(
        {1: 2},
        {None: 3},
        {(1, 2): 3},
        {"kind": "median"},
        {"kind": "median", "no": 1},
        {"rising": -1},
    ),
    *({"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}, {"low": 0, "high": "a"}),
    *(
        {"low": 1, "high": 2, "step": 0},
        {"low": 1},
        {"low": 1, "high": 1e300},
        {"low": 1, "high": 9},
    ),
    *(
        [{"router": "None"}],
        {"router": ["DTR"]},
        {"score": "up"},
        ["NoRouting", "DRT"],
        list(range(99)),
    ),
]
KEYS = [*{f.name: 0 for form in (GridForm, SearchForm) for f in fields(form)}, "seed", "router"]
KEYS += ["router.alpha", "router.gamma", "data.root", "", "a.b.c.d", "no", 3, None, "a\nb"]


def broken_text(text, rng):
    """Returns the bytes of a YAML with one mistake of a hand, an editor or a disk."""
    lines = text.splitlines(keepends=True)
    here, there = rng.randrange(len(lines)), rng.randrange(len(lines))
    at = rng.randrange(len(text))
    kind = rng.randrange(9)
    if kind == 0:
        del lines[here]
    elif kind == 1:
        lines.insert(there, lines[here])
    elif kind == 2:
        lines[here], lines[there] = lines[there], lines[here]
    elif kind == 3:
        lines[here] = rng.choice((" ", "\t", "   ")) + lines[here]
    elif kind == 4:
        return text[:at].encode()
    elif kind == 5:
        noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        return text[:at].encode() + noise + text[at:].encode()
    elif kind == 6:
        return (text[:at] + rng.choice(TEXTS) + text[at:]).encode("utf-8", "surrogatepass")
    elif kind == 7:
        return (text[:at] + chr(rng.randrange(32, 127)) + text[at + 1 :]).encode()
    else:  # a value
        changed = lines[here].partition(":")[0] + ": " + rng.choice(TEXTS)
        lines[here] = changed.rstrip("\n") + "\n"
    return "".join(lines).encode()


def places(node, at=()):
    """Yields the path of every entry below a node."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def broken_content(text, rng):
    """Returns the bytes of a YAML of sound syntax that says something else."""
    content = copy.deepcopy(yaml.safe_load(text))
    *way, key = rng.choice(list(places(content)))
    parent = content
    for step in way:
        parent = parent[step]
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = parent.pop(key)
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        parent[key] = [parent[key], copy.deepcopy(rng.choice(VALUES))]
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    return yaml.safe_dump(content, sort_keys=False).encode("utf-8", "surrogatepass")


def mutations(name, number, seed=0):
    """Yields mutations of a shipped sweep as bytes, the same in every clone."""
    text = recipe.find(name).read_text()
    lines = text.splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    rng = random.Random(f"{name} {seed}")
    for _ in range(number):
        content = rng.choice((broken_text, broken_content))(text, rng)
        yield content.replace(b"../configs", bytes(recipe.SHIPPED.parent / "configs"))


def preview_of(path, folder, real):
    """Returns the exit code and the mistake of a sweep that a person looks at before it trains.

    A real one resolves the first two points as they will be trained; else a stand-in does.
    """

    def first_two(found):
        return resolve_all(replace(found, assignments=found.assignments[:2], seeds=1))

    work = SimpleNamespace(
        work=lambda: 3, training_work=lambda: 2, parameters=lambda: 10**6, networks=1
    )
    modules = {
        "dtr_lightning.experiment.fit": SimpleNamespace(seconds_per_step=lambda config: 6.0),
        "dtr_lightning.experiment.experiment": SimpleNamespace(Experiment=lambda config: work),
        "dtr_lightning.config.parser": config
        if real
        else SimpleNamespace(
            resolve=standin.resolve, run_name=standin.run_name, takes=standin.takes
        ),
    }
    resolve_all, said, mistake = plan.resolve_all, StringIO(), StringIO()
    arguments = ["sweep.py", str(path), "--dry-run", "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as replaced:
        for name, module in modules.items():
            replaced.setitem(sys.modules, name, module)
        replaced.setattr(driver, "resolve_all", first_two if real else resolve_all)
        replaced.setattr(preview, "this_machine", lambda: Machine(2, ()))
        replaced.setattr(sys, "argv", arguments)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(mistake):
            return command.main(), mistake.getvalue()


def refused(content, folder, real):
    """Returns whether a broken sweep is refused, if it is so as it should."""
    path = folder / "sweep.yaml"
    path.write_bytes(content)
    code, mistake = preview_of(path, folder, real)
    if code:
        assert code == 2
        assert re.fullmatch(r"error: .+\n", mistake)
        assert mistake.count("\n") == len(mistake.splitlines()) == 1
        assert len(mistake.replace(str(folder), "")) < 500
        mistake.encode()
    else:
        assert mistake == ""
    assert list(folder.iterdir()) == [path]
    return code == 2


@pytest.mark.parametrize("name", slow_except(recipe.names(), "search"))
def test_a_broken_yaml_is_one_line_or_means_something_else(name, tmp_path):
    found = [
        refused(content, tmp_path, real=number % REAL == 0)
        for number, content in enumerate(mutations(name, EACH))
    ]
    assert sum(found) > EACH / 3  # else the mutations are no test


def main(number, seed=0):
    """Tries mutations of each shipped sweep and prints those that are neither valid nor refused."""
    for name in recipe.names():
        count = 0
        for i, content in enumerate(mutations(name, number, seed)):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    count += refused(content, Path(folder), real=i % REAL == 0)
                except BaseException as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    print(name, repr(error)[:300], where.filename, where.lineno, flush=True)
                    Path(f"/tmp/fuzz-{name}-{i}.yaml").write_bytes(content)
        print(f"{name}: {count} of {number} refused", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
