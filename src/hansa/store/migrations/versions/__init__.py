"""One module a migration; its revision is the number of the schema that it makes."""
