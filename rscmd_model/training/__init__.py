"""Training a model on pairs with the ultralytics trainer. May import everything but diagnosis and the commands."""
