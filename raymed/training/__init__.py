"""The machine that all recipes share: DeepSpeed engine, loop, checkpoints, TorchTrainer."""
