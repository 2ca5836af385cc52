"""Finding cases that look alike: features of pictures, kept and searched."""
