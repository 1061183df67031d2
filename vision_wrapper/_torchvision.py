"""torchvision, which has compiled parts that have to be built for the torch beside it."""

from __future__ import annotations

from types import ModuleType

from vision_wrapper.errors import MissingPackageError


def torchvision() -> ModuleType:
    """The package. Raises `MissingPackageError` where it cannot be imported, as beside another build of torch."""
    try:
        import torchvision
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # the last one at a second try
        import torch

        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingPackageError(
            f"torchvision cannot be used beside torch {torch.__version__}: {why} Install both at once, from one index: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    return torchvision
