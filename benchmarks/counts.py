"""What a network costs: its parameters, multiply-adds and floating-point operations (Table 7).

Networks are built on the meta device: nothing is computed, XL takes as long as S. Multiply-adds
(MACs) are those of matrix products and convolutions for one sample, attention included; FLOPs are
twice as many. What the papers call GFLOPs are MACs.
"""

__all__ = ["NETWORKS", "ROUTERS", "Cost", "cost", "costs", "network"]

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from analysis.tables.paper_rows import published
from dtr_lightning.errors import choices
from dtr_lightning.models import ADM, DiT_B, DiT_L, DiT_S, DiT_XL
from dtr_lightning.models.macs import count_macs
from dtr_lightning.routing import DTR, NoRouting, Route, Router, Switch

# guided-diffusion's ImageNet-64 network, without a null class
ADM_64 = {"image_size": 64, "in_channels": 3, "out_channels": 6, "model_channels": 192}
ADM_64 |= {"channel_mult": (1, 2, 3, 4), "num_res_blocks": 3, "attention_resolutions": (2, 4, 8)}
ADM_64 |= {"num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True}
ADM_64 |= {"use_new_attention_order": True, "dropout": 0.1, "num_classes": 1000}
DIT = {"S": DiT_S, "B": DiT_B, "L": DiT_L, "XL": DiT_XL}
NETWORKS = {
    f"{name}/{p}": partial(cls, patch_size=p) for p in (2, 4, 8) for name, cls in DIT.items()
}
NETWORKS["ADM-64"] = partial(ADM, **ADM_64)
ROUTERS = {"NoRouting": NoRouting, "DTR": DTR, "Switch": Switch}
PER_ELEMENT = {"ADM-64": 1}  # Eq. 7 of a DiT block is m z, (1 - m) z and their sum: 3


class Cost(NamedTuple):
    """Counts for one sample.

    parameters: all that a checkpoint stores, DiT's frozen table of positions included; trained:
    without that; active: with k of Switch-DiT's M experts. macs: as computed here; one_by_one: with
    Switch-DiT's k experts as a product each, which this suite combines first. masking: elementwise
    operations of a fixed mask by Eq. 7, which are no MACs.
    """

    parameters: int
    trained: int
    active: int
    macs: int
    one_by_one: int
    masking: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the products: two per multiply-add."""
        return 2 * self.macs


class _Tally(Router):
    """Stands for fixed masks: adds up the elements that blocks read."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks, self.elements = blocks, 0

    def forward(self, t: Tensor, emb: Tensor) -> list[Route]:
        return [self.count] * self.blocks

    def count(self, z: Tensor) -> Tensor:
        self.elements += z.numel()
        return z


def network(name: str, router: Router) -> nn.Module:
    """Returns a network of the papers with a router; UserError for an unknown name."""
    if name not in NETWORKS:
        raise choices("model", name, NETWORKS)
    return NETWORKS[name](router=router)


def cost(name: str, router: str) -> Cost:
    """Returns what a network costs with a router of its default options."""
    with torch.device("meta"):
        model = network(name, ROUTERS[router]()).eval()
        size = 64 if name == "ADM-64" else 32
        x = torch.empty(1, model.in_channels, size, size)
        t, y = torch.zeros(2, 1, dtype=torch.long)
    stored = [(p.numel(), p.requires_grad) for p in model.parameters()]
    parameters, trained = sum(n for n, _ in stored), sum(n for n, grad in stored if grad)
    active, extra, tally = parameters, 0, None
    if isinstance(switch := model.router, Switch):
        for block in switch.routers:
            experts, channels, _ = block.experts.w.shape
            active -= (experts - switch.k) * (channels + 1) * channels
            tokens = (size // model.patch_size) ** 2
            extra += (switch.k * tokens - tokens - experts) * channels**2
    elif isinstance(switch, DTR):
        model.router = tally = _Tally(switch.blocks)  # a mask is no product
    macs = count_macs(model, x, t, y)
    masking = PER_ELEMENT.get(name, 3) * tally.elements if tally else 0
    return Cost(parameters, trained, active, macs, macs + extra, masking)


def costs(names: Sequence[str], routers: Sequence[str]) -> pd.DataFrame:
    """Returns a row per network and router, unrounded, with the published numbers beside.

    Switch-DiT is left out for ADM, to which it does not belong.
    """
    entry = published()["table7"]
    theirs = {(row["model"], row["router"]): row["published"] for row in entry["rows"]}
    headings = [f"published {heading}" for heading in entry["columns"].values()]
    rows = []
    for name in names:
        for router in routers:
            if name == "ADM-64" and router == "Switch":
                continue
            found = cost(name, router)
            values = theirs.get((name, router), [None] * len(headings))
            row = {"model": name, "router": router} | found._asdict() | {"flops": found.flops}
            rows.append(row | dict(zip(headings, values, strict=True)))
    return pd.DataFrame(rows).astype(dict.fromkeys(headings, float))
