"""Load on a federation's server: one core for the server, the other for what calls it. See ../README.md."""
