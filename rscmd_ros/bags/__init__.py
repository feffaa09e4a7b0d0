"""Bags: reading, answering and scoring them, reports. May import the node's parts, cameras and pairing."""
