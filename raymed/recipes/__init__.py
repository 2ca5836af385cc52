"""The contract between a system and the machine that trains it, and what several systems share."""
