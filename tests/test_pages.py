"""The pages name what there is, and link to files that exist."""

import re

import numpy as np
import pytest

from dtr_lightning.config.parser import AXES
from dtr_lightning.routing import FixedMasks, MaskRouter
from tests.conftest import ROOT, shipped

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("axis", AXES)
def test_readme_names_every_choice_of_an_axis(axis):
    names = shipped(AXES[axis][0])
    assert names
    assert [name for name in names if f"`{name}`" not in README] == []


def test_readme_names_the_routers_that_keep_a_table_per_block(tmp_path):
    file = tmp_path / "masks.npy"
    np.save(file, np.ones((2, 1000, 24), dtype=bool))
    found = set()
    for name, cls in shipped(MaskRouter).items():
        router = cls(str(file)) if cls is FixedMasks else cls()
        router.bind(1000, [24, 24], 24)
        if len(router.widths) > 1:
            found.add(name)
    (told,) = re.findall(r"per distinct width; (.*?), whose\s+blocks differ", README, re.S)
    assert set(re.findall(r"\w+", told)) - {"and"} == found


def test_every_router_of_masks_but_one_of_a_file_has_a_recipe():
    missing = set(shipped(MaskRouter)) - {
        name
        for file in (ROOT / "configs" / "routers").glob("*.yaml")
        for name in re.findall(r"[A-Z]\w+", file.read_text().split("router:")[-1])
    }
    assert missing == {"FixedMasks"}  # as README says


@pytest.mark.parametrize("page", ["README.md", "results/README.md", "docs/sweeps.md"])
def test_pages_link_to_files_that_exist(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link
