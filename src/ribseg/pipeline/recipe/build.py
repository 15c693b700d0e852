"""Builds the objects that a configuration names."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ribseg.errors import ConfigError, RibsegError


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
        cause = error.__cause__
        if isinstance(cause, RibsegError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError | MisconfigurationException):
            raise ConfigError(f"{node.get('_target_')}: {cause}") from error
        raise


def plain(node: Any) -> Any:
    """A configuration node as plain dictionaries, lists and values, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
