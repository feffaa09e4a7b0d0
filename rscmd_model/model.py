"""The names that checkpoints of earlier versions pickled for what is in `network` and `methods` now."""

from rscmd_model.network.model import Adapter, Backbone, Branch, Head, LeanBranch, LeanHead, RscmdModel

__all__ = ["Adapter", "Backbone", "Branch", "Head", "LeanBranch", "LeanHead", "RscmdModel"]
