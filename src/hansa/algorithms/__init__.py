"""The federated algorithms: pieces, plans, the four functions of a round, and published methods as recipes."""
