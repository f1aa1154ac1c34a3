"""What training scripts need around a model with a `loss`: settings, loop, log, checkpoints, tests and results."""
