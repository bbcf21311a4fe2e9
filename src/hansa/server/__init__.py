"""The server of a federation: the life of its runs, the client API, the operator API, the operator's pages."""
