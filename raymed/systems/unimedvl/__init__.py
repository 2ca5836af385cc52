"""UniMedVL: one model that reads medical pictures and draws them."""
