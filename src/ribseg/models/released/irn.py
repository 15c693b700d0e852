"""Weight names in the IRNet checkpoints released by IRN's and RIB's authors (`res50_irn.pth`)."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ribseg.models.weights import renamed

STAGE_OF = {"layer3": 1, "layer4": 2}  # all other layers of the ResNet are in the trunk, stage 0
# The released network registers each layer up to three times: directly, in a stage, and in a list of layers;
# the mean displacement under its own name and as the last layer of the displacement branch.
RENAMED = (
    (re.compile(r"^edge_layers\.(\d)\."), lambda m: f"fc_edge{int(m[1]) + 1}."),
    (re.compile(r"^dp_layers\.(\d)\."), lambda m: f"fc_dp{int(m[1]) + 1}."),
    (re.compile(r"^(?:backbone\.0|stage1)\.([01])\."), lambda m: f"resnet50.{('conv1', 'bn1')[int(m[1])]}."),
    (re.compile(r"^backbone\.([1-4])\.0\."), lambda m: f"resnet50.layer{m[1]}."),
    (re.compile(r"^stage([2-5])\.0\."), lambda m: f"resnet50.layer{int(m[1]) - 1}."),
)
BRANCHES = (
    (re.compile(r"^fc_edge([1-5])\."), lambda m: f"boundary.levels.{int(m[1]) - 1}."),
    (re.compile(r"^fc_edge6\."), lambda m: "boundary.final."),
    (re.compile(r"^fc_dp([1-5])\."), lambda m: f"displacement.levels.{int(m[1]) - 1}."),
    (re.compile(r"^fc_dp6\."), lambda m: "displacement.deep."),
    (re.compile(r"^fc_dp7\.(?=[01]\.)"), lambda m: "displacement.merge."),
    (re.compile(r"^fc_dp7\.3\."), lambda m: "displacement.final."),
    (re.compile(r"^(?:mean_shift|fc_dp7\.4)\.running_mean$"), lambda m: "displacement_mean"),
    (re.compile(r"^resnet50\.(\w+)\."), lambda m: f"backbone.stages.{STAGE_OF.get(m[1], 0)}.{m[1]}."),
)
# Constant buffers of the training program, and the ResNet's unused ImageNet head.
LEFT_OUT = re.compile(r"^(path_indices\d+|disp_target|resnet50\.fc\..*)$")


def irn_state(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Returns the weights of a released checkpoint under the names of `IRNet`.

    Args:
        state: as read from the file.
        path: of the file, for messages.

    Raises:
        ConfigError: two copies of a weight differ.
    """
    kept = {key: value for key, value in state.items() if not LEFT_OUT.match(key)}
    return renamed(kept, _rename, path)


def _rename(key: str) -> str:
    for table in (RENAMED, BRANCHES):
        for pattern, name in table:
            key, found = pattern.subn(name, key)
            if found:
                break
    return key
