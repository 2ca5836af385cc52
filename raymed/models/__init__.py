"""Networks and their checkpoints, in and out; no training code."""
