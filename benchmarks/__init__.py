"""Hansa and its peers at the same work, on the same machine, in one run. See README.md beside this file."""
