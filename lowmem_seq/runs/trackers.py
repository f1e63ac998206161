"""The trackers that a run's figures can be told to: which there are, and whether one is installed."""

from __future__ import annotations

from importlib.util import find_spec

from lowmem_seq.errors import UsageError, nearest

NO_TRACKER = "none"
PACKAGES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "aim": ("aim",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
}
"""The names that Accelerate knows them by, with the packages of which one must be there."""


def require_tracker(name: str | None) -> None:
    """See that a tracker is one that Accelerate knows, and installed.

    Args:
        name: what `--log-with` was given; None where it wasn't.

    Raises:
        UsageError: it isn't.
    """
    if name is None or name == NO_TRACKER:
        return
    if name not in PACKAGES:
        known = [*PACKAGES, NO_TRACKER]
        raise UsageError(f"there is no tracker {name!r}.", nearest(name, known) or f"known are {', '.join(known)}")
    if not is_installed(name):
        raise UsageError(
            f"--log-with {name} needs the package {PACKAGES[name][0]}, which is not installed here.",
            f"pip install {PACKAGES[name][0]}",
        )


def is_installed(name: str) -> bool:
    """Whether a tracker's package is there; it is not loaded."""
    return any(find_spec(package) for package in PACKAGES[name])
