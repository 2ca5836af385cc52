"""One room per system: its options, its recipe, its network, and what only that system has."""
