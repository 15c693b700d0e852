"""Weights in other programs' names: the features are those of the program that wrote them."""

import pytest
import timm
import torch

import ribseg
from ribseg.errors import ConfigError
from ribseg.models.backbone import Backbone, load_weights, whole_name

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
OURS = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 56}
# Name of the model in transformers -> timm's network, its further settings, and where the tokens begin.
FAMILIES = {
    "ViTModel": ("vit_tiny_patch16_224", {"patch_size": 14}, 1, {}),
    "Dinov2Model": ("vit_small_patch14_dinov2", {}, 1, {"intermediate_size": None}),
    "Dinov2WithRegistersModel": ("vit_small_patch14_reg4_dinov2", {}, 5, {"intermediate_size": None}),
    "CLIPVisionModel": ("vit_base_patch32_clip_quickgelu_224", {"patch_size": 14, "norm_layer": None}, 1, {}),
}


@pytest.fixture(params=FAMILIES)
def written(request, tmp_path):
    """A model of transformers with random weights, its file, and how timm builds it."""
    transformers = pytest.importorskip("transformers")
    network, kwargs, prefix, own = FAMILIES[request.param]
    size = {k: v for k, v in (SIZE | own).items() if v is not None}
    config = getattr(transformers, request.param.replace("Model", "Config"))(
        **size, image_size=56, patch_size=14, **({"mlp_ratio": 4} if "intermediate_size" not in size else {})
    )
    torch.manual_seed(0)
    model = getattr(transformers, request.param)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(tmp_path / "model")
    kwargs = OURS | {k: v for k, v in kwargs.items() if v is not None}
    return model, tmp_path / "model" / "model.safetensors", network, kwargs, prefix


@torch.no_grad()
def test_features_of_hugging_faces_transformers(written):
    model, file, network, kwargs, prefix = written
    backbone = Backbone(network, kwargs=kwargs).eval()
    load_weights(backbone, file)
    images = torch.randn(2, 3, 56, 56)
    tokens = model(images).last_hidden_state[:, prefix:]
    if "clip" in network:  # the norm is over its class token alone there
        tokens = getattr(model, "vision_model", model).post_layernorm(tokens)
    expected = tokens.transpose(1, 2).unflatten(2, (4, 4))
    assert backbone.output_stride == 14
    torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_positions_of_another_size_are_resized_as_timm_does(tmp_path):
    kwargs = {k: v for k, v in OURS.items() if k != "img_size"}
    large = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=112, **kwargs)
    torch.save(large.state_dict(), tmp_path / "a.pth")
    backbone = Backbone("vit_small_patch14_reg4_dinov2", kwargs=OURS)
    load_weights(backbone, tmp_path / "a.pth")
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(
        large.state_dict(), timm.create_model("vit_small_patch14_reg4_dinov2", **OURS)
    )
    assert torch.equal(backbone.state_dict()["stages.0.network.pos_embed"], filtered["pos_embed"])


@torch.no_grad()
def test_openais_clip_by_its_own_names(tmp_path):
    name, kwargs = "vit_base_patch32_clip_quickgelu_224", OURS | {"patch_size": 14}
    network = timm.create_model(name, **kwargs).eval()
    swaps = [
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("norm_pre", "ln_pre"),
        ("blocks.", "transformer.resblocks."), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
        ("fc1", "c_fc"), ("fc2", "c_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"),
        ("cls_token", "class_embedding"),
    ]  # fmt: skip
    state = {"input_resolution": torch.tensor(56), "context_length": torch.tensor(77)}
    for key, value in network.state_dict().items():
        for one, other in swaps:
            key = key.replace(one, other)
        if key.startswith("norm."):
            key = key.replace("norm", "ln_post")
        if not key.startswith("head"):
            state[f"visual.{key}"] = value
    state["visual.class_embedding"] = state["visual.class_embedding"][0, 0]
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    torch.save(state, tmp_path / "clip.pt")
    backbone = Backbone(name, kwargs=kwargs).eval()
    load_weights(backbone, tmp_path / "clip.pt")
    images = torch.randn(1, 3, 56, 56)
    expected = network.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    other = Backbone("vit_base_patch32_clip_224", kwargs=kwargs)
    with pytest.raises(ConfigError, match=r"clip\.pt.*quick_gelu"):
        load_weights(other, tmp_path / "clip.pt")


def test_what_hugging_faces_file_lacks_is_missing(written):
    from safetensors.torch import load_file, save_file

    _, file, network, kwargs, _ = written
    state = load_file(file)
    key = next(name for name in state if name.endswith(("key.weight", "k_proj.weight")))
    del state[key]
    save_file(state, file)
    with pytest.raises(ConfigError, match="weights are missing"):
        load_weights(Backbone(network, kwargs=kwargs), file)


def test_a_clip_of_hugging_face_says_its_activation_in_its_configuration(written):
    _, file, network, kwargs, _ = written
    if "clip" not in network:
        pytest.skip("a CLIP alone")
    with pytest.raises(ConfigError, match=r"trained with quick_gelu: take .*`clip_quickgelu`"):
        load_weights(Backbone("vit_base_patch32_clip_224", kwargs=kwargs), file)
    file.with_name("config.json").unlink()
    with pytest.raises(ConfigError, match=r"QuickGELU .OpenAI's. or GELU"):
        load_weights(Backbone(network, kwargs=kwargs), file)


def test_a_stride_of_its_own_and_names_that_are_completed():
    small = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    swin = ribseg.Classifier("swin_tiny", 2, backbone_kwargs=small)
    assert swin.settings["backbone"] == "swin_tiny_patch4_window7_224"
    assert swin.settings["output_stride"] == 32
    assert ribseg.Classifier("resnet10t", 2).settings["output_stride"] == 16
    assert whole_name("vit_tiny") == "vit_tiny"  # there are several
