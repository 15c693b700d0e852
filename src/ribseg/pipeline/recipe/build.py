"""Builds the objects that a configuration names by `_target_`, and checks the sections that name them."""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from ribseg.checks import within
from ribseg.errors import ConfigError, RibsegError, reason
from ribseg.methods.base import takes as takes_argument


def build(node: DictConfig | Mapping[str, Any], **replaced: Any) -> Any:
    """The object that a configuration's `_target_` builds, with keyword arguments that replace settings.

    Raises:
        ConfigError: the target does not accept its arguments; names the target.
    """
    try:
        return instantiate(node, **replaced)
    except MissingMandatoryValue as error:
        name = error.full_key
        raise ConfigError(f"the setting {name} has no default; give it: {name}=...") from error
    except InstantiationException as error:
        # Here, as what builds a method alone needs no Lightning, whose import takes seconds.
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

        cause = error.__cause__
        if isinstance(cause, RibsegError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError | MisconfigurationException):
            raise ConfigError(f"{node.get('_target_')}: {cause}") from error
        raise


def build_kind(kind: type, name: str, node: Any) -> Any:
    """The object that plain settings build.

    Args:
        kind: its class, of Lightning.
        name: of the object, for messages.
        node: the settings.

    Raises:
        ConfigError: it cannot be built, or is of another class.
    """
    found = build(OmegaConf.create(node))
    if not isinstance(found, kind):
        raise ConfigError(f"{name} gives {type(found).__name__}, no {kind.__name__.lower()} of Lightning")
    return found


def plain(node: Any) -> Any:
    """A configuration node as plain dictionaries, lists and values, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


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

    The optimizer is built by `new_optimizer` if the module has it, else from its setting `optimizer`.

    Args:
        path: in the configuration.
        node: the section.
        replaced: arguments that replace settings, e.g. the network.

    Raises:
        ConfigError: an argument of the module, or of its optimizer, is unknown or out of range.
    """
    with within(path):
        module = build(node, **replaced)
    optimizer, learning = node.get("optimizer"), [w for w in module.parameters() if w.requires_grad]
    with within(f"{path}.optimizer"):
        try:
            if hasattr(module, "new_optimizer"):
                module.new_optimizer()
            elif learning and isinstance(optimizer, Mapping) and optimizer.get("_partial_"):
                build(optimizer)([{"params": learning, "lr": 1e-3}])
        except (TypeError, ValueError) as error:
            raise ConfigError(reason(error)) from error
    return module


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
