"""Search space, Optuna study, early stopping, and the search that runs them on Ray Tune."""
