"""Messages to images: conversion, decoding, calibration. May import pairing, and `rscmd_model`'s imaging."""
