"""What every job shares: its command line, its words, its end."""
