"""Scoring models on pairs, sound and faulty, and over many trainings. May import inference, datasets and imaging."""
