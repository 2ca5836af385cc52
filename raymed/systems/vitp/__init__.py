"""Pretraining of vision transformers inside a vision-language model, on conversations about pictures."""
