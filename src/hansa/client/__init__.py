"""The client agent: takes part in a federation for one owner of data, within the limits of its site's policy."""
