"""raymed: train and tune medical imaging models on Ray, judged per patient."""
