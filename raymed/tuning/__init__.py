"""Search space, Optuna study, early stopping, and the night that runs them on Ray Tune."""
