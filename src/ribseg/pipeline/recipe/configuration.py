"""Composing configurations in Python, as Hydra does for the commands."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ribseg.errors import ConfigError, reason

_PACKAGE = Path(__file__).parents[2]
# The folder conf/: inside the package after an installation, at the top level in a checkout.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if path.is_dir())


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The composed configuration, with Hydra's own section under `hydra`; Hydra's global state is restored.

    Args:
        name: of the file in `conf/`, without its extension.
        overrides: in Hydra's syntax, e.g. "rib.steps=5"; "hydra.searchpath=[file:///my/conf]" adds a folder
            of configurations.

    Raises:
        ConfigError: an override names no setting, or gives it an invalid value.
    """
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{list(overrides)} cannot be used as settings: {reason(error)}") from error
    finally:
        GlobalHydra.instance().hydra = before
