"""Composes configurations in Python, as Hydra does for the commands."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ribseg.errors import ConfigError, reason

_PACKAGE = Path(__file__).parents[2]
# Of the configurations: inside an installed package, at the top level of a checkout.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if path.is_dir())


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration, with Hydra's own section under `hydra`; a running Hydra program is left as it was.

    Args:
        name: of the file in `conf/`, without its ending.
        overrides: in Hydra's grammar, as "rib.steps=5"; "hydra.searchpath=[file:///my/conf]" adds one's own
            files.

    Raises:
        ConfigError: an override is no setting, or has no value that it can have.
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
