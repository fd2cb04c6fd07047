"""Training: settings, the Lightning module, checkpoints, cross-validation, trained recognisers.

Nothing is imported here, so that reading a file of settings does not wait for Lightning:
``from mmer.training.recognizer import load_recognizer``, ``from mmer.training.run import train``.
"""
