"""The earlier name of `rscmd_model.imaging.thermal`."""

from rscmd_model.imaging.thermal import ThermalContract

__all__ = ["ThermalContract"]
