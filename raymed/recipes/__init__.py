"""One file per system: how rows become a batch, what the loss is, what is judged, what is exported."""
