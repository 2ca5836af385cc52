"""What a sample is, where it comes from, how it is prepared, split, planned and streamed."""
