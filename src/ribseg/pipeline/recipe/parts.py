"""Checks of the sections of the configuration that build objects by `_target_`."""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ribseg.checks import within
from ribseg.errors import ConfigError, reason
from ribseg.methods.base import takes as takes_argument
from ribseg.pipeline.recipe.build import build


def takes(node: Mapping[str, Any], name: str) -> bool:
    """Whether a `_target_` has a keyword argument of this name."""
    return takes_argument(located(node["_target_"]), name)


def check_targets(path: str, node: Any) -> None:
    """Imports every `_target_` in a section of the configuration.

    Raises:
        ConfigError: one is missing or cannot be imported; names it, with the reason.
    """
    if not isinstance(node, dict | list):
        return
    if isinstance(node, dict) and node.get("_target_") == "???":
        raise ConfigError(f"the setting {path}._target_ has no default; give it: {path}._target_=...")
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        with within(f"{path}._target_={node['_target_']}"):
            located(node["_target_"])
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        check_targets(f"{path}.{name}", child)


def check_training(path: str, node: Mapping[str, Any], **replaced: Any) -> Any:
    """Builds a LightningModule that trains, and its optimizer once; returns the module.

    Args:
        path: in the configuration.
        node: the section.
        replaced: arguments that replace settings, e.g. the network.

    Raises:
        ConfigError: an argument is unknown or out of range.
    """
    with within(path):
        module = build(node, **replaced)
    with within(f"{path}.optimizer"):
        check_optimizer(module, node)
    return module


def check_optimizer(module: Any, node: Mapping[str, Any]) -> None:
    """Builds a module's optimizer, by its `new_optimizer` if it has one, else from its setting `optimizer`.

    Raises:
        ConfigError: the optimizer does not accept its arguments.
    """
    make = getattr(module, "new_optimizer", None)
    if make is None:
        optimizer = node.get("optimizer")
        learning = [weight for weight in module.parameters() if weight.requires_grad]
        if not learning or not isinstance(optimizer, Mapping) or not optimizer.get("_partial_"):
            return

        def make() -> Any:
            return build(optimizer)([{"params": learning, "lr": 1e-3}])

    try:
        make()
    except (TypeError, ValueError) as error:
        raise ConfigError(reason(error)) from error


def located(target: str) -> Callable[..., Any]:
    """The class or function that a `_target_` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return instantiate({"_target_": target, "_partial_": True}).func
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConfigError(
            f"expected an importable class or function, as package.module.Name: {reason(cause)}"
        ) from error
