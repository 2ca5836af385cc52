"""The doctor: what is here, what is missing, what that means and what to do."""
