"""The CLIP jobs: what they are told, the runs they stand for, and the files they leave."""
