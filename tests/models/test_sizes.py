"""Sizes of the images: networks that insist on one, and networks that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torchvision
import transformers

import deepres
from deepres import DeepresError
from deepres.models import open_model, open_with_data


def test_images_of_another_size_than_the_network_insists_on_are_refused(tmp_path: Path) -> None:
    for reference in ("timm:vit_tiny_patch16_224", torchvision.models.VisionTransformer(224, 16, 1, 1, 8, 8, num_classes=10)):
        with pytest.raises(DeepresError, match="takes images of 224 pixels only, and would get images of 32; give 224"):
            open_with_data(reference, "digits", size=32)
        with pytest.raises(DeepresError, match="takes images of 224 pixels only, and would get images of 32; give 224"):
            open_model(reference).preparation(32)
        assert open_with_data(reference, "digits").data.prepare.size == open_model(reference).preparation().size == 224
    with pytest.raises(DeepresError, match="takes images of 224 pixels only"):
        deepres.train(deepres.Run("timm:vit_tiny_patch16_224", "digits", "digits", str(tmp_path / "out")), show=False)
    assert not (tmp_path / "out").exists()


def test_networks_that_take_images_of_any_size_are_not_held_to_one() -> None:
    any_size = timm.create_model("test_vit", num_classes=10, dynamic_img_size=True, in_chans=1)
    assert open_with_data(any_size, "digits", size=32).data.prepare.size == 32
    config = transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=56, num_channels=1)
    assert open_with_data(transformers.Dinov2ForImageClassification(config), "digits", size=28).data.prepare.size == 28
