"""Ray: joining a cluster or starting one here, and how much it has room for."""
