"""The nouns, the protocols of all pieces, and what every room stands on."""
