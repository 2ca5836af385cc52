"""MLflow: its address, its server, a run's record, and what waits while it does not answer."""
