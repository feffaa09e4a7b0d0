"""Why a model is as good as it is: gradients and linear probing. May import training and evaluation."""
