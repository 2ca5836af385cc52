"""How a split of a packed sequence is seen: causal text, a picture as a whole, a noisy target by itself alone."""

CAUSAL, FULL, NOISE = 0, 1, 2
