"""A toy classifier: a system for tests of the machine, to which it is as any other."""
