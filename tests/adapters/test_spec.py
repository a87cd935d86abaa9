"""What a network takes and gives, read off the network."""

import timm
import torchvision
import transformers

import deepres
from deepres.adapters import spec_of


def test_networks_of_ours() -> None:
    spec = spec_of(deepres.create("resnet20-cifar", in_channels=1, num_classes=7))
    assert (spec.inputs, spec.layout, spec.size, spec.image_size, spec.channels, spec.classes) == (
        "images",
        "NCHW",
        None,
        32,
        1,
        7,
    )
    assert (spec.first, spec.classifier, spec.mean, spec.labels) == ("stem.conv", "head.fc", None, None)
    assert spec_of(deepres.create("resnet18")).image_size == 224


def test_torchvision_prepares_for_imagenet() -> None:
    spec = spec_of(torchvision.models.resnet18(num_classes=5))
    assert (spec.first, spec.classifier, spec.classes, spec.interpolation) == ("conv1", "fc", 5, "bilinear")
    assert spec.mean == (0.485, 0.456, 0.406) and spec.crop == 0.875


def test_timm_notes_its_preprocessing() -> None:
    spec = spec_of(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5))
    assert spec.mean == spec.std == (0.5, 0.5, 0.5) and spec.interpolation == "bicubic"
    assert (spec.size, spec.first, spec.classifier) == (224, "patch_embed.proj", "head")


def test_hugging_face_notes_its_labels_and_its_processor_the_rest() -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "image_size": 32}
    config = transformers.ViTConfig(**small, patch_size=16, id2label={1: "cat", 0: "dog"})
    spec = spec_of(transformers.ViTForImageClassification(config))
    assert (spec.labels, spec.classes, spec.size, spec.mean) == (("dog", "cat"), 2, 32, None)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": {"height": 48, "width": 48}}
    spec = spec.with_processor(processor)
    assert (spec.mean, spec.interpolation, spec.image_size, spec.usual_size) == ((0.5, 0.5, 0.5), "bicubic", 32, 48)


def test_a_language_model_reads_tokens() -> None:
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    spec = spec_of(transformers.GPT2LMHeadModel(config))
    assert (spec.inputs, spec.layout, spec.longest, spec.classes) == ("tokens", "NLC", 16, 50)
    assert (spec.first, spec.classifier, spec.channels) == ("transformer.wte", "lm_head", None)
