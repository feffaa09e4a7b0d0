"""Readers of paired data sets, and the synthetic world."""
