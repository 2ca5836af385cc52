"""The lung classifier: slices of a patient in, probabilities of the declared classes out."""
