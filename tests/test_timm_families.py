"""Every family of timm: its features are timm's `forward_features`, and a file of timm's weights loads.

Ten families are tested always, all of them (some minutes) by: python -m pytest -m nightly
tests/test_timm_families.py
"""

import pytest
import timm
import torch
from torch import nn

from ribseg.errors import ConfigError
from ribseg.models import Backbone, load_weights
from ribseg.models.chain import find_chain

# All of them in the oldest timm that setup.cfg allows.
ALWAYS = {
    "byobnet": "test_byobnet",
    "convnext": "convnext_atto",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "efficientnet": "test_efficientnet",
    "ghostnet": "ghostnet_050",
    "mobilenetv3": "mobilenetv3_small_050",
    "nfnet": "nf_regnet_b0",
    "regnet": "regnetx_002",
    "resnet": "resnet10t",
}
NIGHTLY = {
    "byoanet": "halonet_h1",
    "convmixer": "convmixer_768_32",
    "cpubone": "cpubone_nano",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientnet (Lite)": "tf_efficientnet_lite0",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "lowformer": "lowformer_b0",
    "metaformer": "poolformerv2_s12",
    "mobilevit": "mobilevit_xxs",
    "nextvit": "nextvit_small",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "senet": "legacy_seresnet18",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "tiny_vit": "tiny_vit_5m_224",
    "tresnet": "tresnet_m",
    "vgg": "vgg11",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
}
# With branches that a chain of stages cannot have, or for images of one size.
REFUSED = {
    "coat": "coat_tiny",
    "efficientformer": "efficientformer_l1",
    "hrnet": "hrnet_w18_small",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv5": "mobilenetv5_base",
    "nasnet": "nasnetalarge",
    "pnasnet": "pnasnet5large",
    "selecsls": "selecsls42",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "xcit": "xcit_nano_12_p8_224",
}
LARGE = {"halonet_h1", "inception_resnet_v2", "inception_v3", "inception_v4"}  # take no small images


def nightly(names):
    return [pytest.param(name, marks=pytest.mark.nightly) for name in names]


def with_statistics(network):
    """Random running statistics, so that a normalization that is left out is seen."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", [*ALWAYS.values(), *nightly(NIGHTLY.values())])
@torch.no_grad()
def test_features_are_those_of_timm(name, tmp_path):
    torch.manual_seed(0)
    network = with_statistics(timm.create_model(name))
    stride = find_chain(name, network)[0][-1].stride
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    backbone = Backbone(name, output_stride=min(stride, 32)).eval()
    load_weights(backbone, tmp_path / "timm.pth")
    images = torch.randn(1, 3, 256, 256) if name in LARGE else torch.randn(1, 3, 64, 96)
    expected, features = network.forward_features(images), backbone(images)
    assert expected.shape[1] == backbone.num_features
    if stride <= 32:
        assert torch.equal(features, expected)
    else:  # at a smaller stride than its own
        assert features.shape[-1] == images.shape[-1] // 32


@pytest.mark.parametrize("name", ["gmlp_ti16_224", *nightly(set(REFUSED.values()) - {"gmlp_ti16_224"})])
def test_other_networks_are_refused(name):
    with pytest.raises(ConfigError, match="use a convolutional network of timm"):
        Backbone(name)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0", "densenet121", "vgg11"])
def test_where_networks_are_cut(name):
    last = {
        "tf_efficientnet_lite0": ["blocks_5", "blocks_6", "conv_head", "bn2"],
        "efficientnet_b0": ["blocks_5", "blocks_6", "conv_head", "bn2"],
        "densenet121": ["features_transition3", "features_denseblock4", "features_norm5"],
        "vgg11": [f"features_{index}" for index in range(15, 21)],
    }
    with torch.device("meta"):  # of VGG's half gigabyte only the names are looked at
        network = timm.create_model(name)
    blocks, ends = find_chain(name, network)
    assert [block.name.replace(".", "_") for block in blocks[ends[-2] :]] == last[name]


def test_features_of_efficientnets_are_rectified():
    """A class activation map is a sum over what was found: there is nothing below zero."""
    torch.manual_seed(0)
    backbone = Backbone("tf_efficientnet_lite0").eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 1280, 4, 4)
    assert 0 <= float(features.min()) < float(features.max()) <= 6
