"""The earlier name of `rscmd_model.imaging.lens`."""

from rscmd_model.imaging.lens import Lens

__all__ = ["Lens"]
