"""Trainers: local training and prediction, batched over clients."""
