"""Answering pairs with a trained model. May import the network, imaging and, to check an export, pairs."""

from rscmd_model.inference.predictor import Predictor, StageTimes

__all__ = ["Predictor", "StageTimes"]
