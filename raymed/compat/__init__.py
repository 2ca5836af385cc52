"""What is used of libraries without their promise that it stays: a file for each library, and nowhere else.

Each name has its reason, and where it stands in the library's source. `SEEN` is the version that it was last seen in; the
library's test under tests/compat/ says which upgrade took it away.
"""
