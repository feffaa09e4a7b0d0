"""Readers of paired data sets, and the check of one. May import imaging."""
