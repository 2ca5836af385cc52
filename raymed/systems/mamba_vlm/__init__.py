"""The Mamba report writer: a picture and a question in, the text of a report out."""
