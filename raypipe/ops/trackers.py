"""Which packages trackers of training need: asked before a run starts, not after hours of scoring."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from raypipe.errors import ConfigError

MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
PACKAGES = MODULES | {"mlflow": "mlflow-skinny"}  # the client without the server
TRACKERS = tuple(MODULES)


def check_installed(names: Sequence[str]) -> None:
    """Imports nothing. A folder of the module's name in the working directory, as wandb leaves one, is no package."""
    for name in names:
        if getattr(find_spec(MODULES[name]), "origin", None) is None:
            package = PACKAGES[name]
            raise ConfigError(
                f"train.report_to: {name}: package {package} is not installed. Run: pip install {package}"
            )
