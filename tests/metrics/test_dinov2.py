"""Laws of FD-DINOv2's features: the class token, PIL's resize, DINOv2's own positions."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dtr_lightning.errors import UserError
from dtr_lightning.metrics import DINOv2Features, TimmFeatures
from dtr_lightning.metrics.dinov2 import resampled


@pytest.fixture
def shallow(monkeypatch):
    """Makes timm's transformers one block deep."""
    create = timm.create_model

    def one_block(model, **options):
        return create(model, depth=1, **options)

    monkeypatch.setattr(timm, "create_model", one_block)


def test_features_are_the_class_token_of_the_resized_image(shallow, tmp_path):
    torch.manual_seed(1)
    net = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    path = tmp_path / "mine.pt"
    torch.save(net.state_dict(), path)
    features = DINOv2Features("small", str(path))
    assert features.name == "fd_dinov2_small_mine" and features.num_features == 384
    assert features.extractor == "DINOv2 ViT small/14, class token"
    assert features.resize == "bicubic to 224x224, antialiased, rounded"
    positions = net.pos_embed.detach()
    net.set_input_size((224, 224))
    net.pos_embed.data.copy_(resampled(positions, 16))
    image = torch.randint(0, 256, (50, 300, 3), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    pil = Image.fromarray(image.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    x = image.permute(2, 0, 1)[None]
    resized = features._resized(x.float())
    levels = torch.from_numpy(np.array(pil)).permute(2, 0, 1)[None].float()
    assert (resized - levels).abs().max() <= 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        token = net.forward_features((resized / 255 - mean) / std)[:, 0]
    assert torch.allclose(features(x), token, atol=1e-5)
    assert features(x[:, :1]).shape == (1, 384)  # grey


def test_positions_are_sampled_with_dinov2s_offset():
    """A ramp keeps its slope 37 / 16.1, up to the ripple of bicubic weights; the token stays.

    A plain resize has the slope 37 / 16: at the far end it is 0.2 off.
    """
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1)
    positions = torch.cat([torch.full((1, 1, 1), 7.0), ramp], 1)
    result = resampled(positions, 16)
    assert result.shape == (1, 257, 1) and result[0, 0, 0] == 7
    row = result[0, 1:, 0].view(16, 16)[8]
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    assert torch.allclose(row[1:-1], expected[1:-1], atol=0.08)


def test_a_transformer_of_timm_takes_another_size():
    features = TimmFeatures("test_vit", size=64)
    assert features.name == "fd_test_vit_untrained_64px"
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert features(images).shape == (2, features.num_features)


def test_names_say_what_the_weights_are(shallow):
    assert DINOv2Features("small").name == "fd_dinov2_small_untrained"
    with pytest.raises(UserError, match="do not exist"):
        DINOv2Features("small", "nowhere.pt")
