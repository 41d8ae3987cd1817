"""What a person's own class raises in its constructor is told with its place in their file."""

import sys

import pytest

from dtr_lightning.config.registry import instantiate
from dtr_lightning.errors import UserError
from dtr_lightning.routing import Router

TEXT = """
from dtr_lightning.routing import DTR


class Breaks(DTR):
    def __init__(self, n: int = 0) -> None:
        super().__init__()
        self.n = 1 // n
"""


def test_the_line_of_their_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_router.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    choice = {"class_path": "broken_router.Breaks", "init_args": {}}
    try:
        with pytest.raises(UserError, match=r"cannot be made: ZeroDivisionError: .*line 8\)"):
            instantiate(Router, choice)
        assert instantiate(Router, choice | {"init_args": {"n": 1}}).n == 1
    finally:
        sys.modules.pop("broken_router")


def test_an_error_of_a_class_of_ours_is_raised():
    with pytest.raises(TypeError):
        instantiate(Router, {"class_path": "DTR", "init_args": {"alpha": object()}})
