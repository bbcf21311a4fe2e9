"""What a federation's server keeps: rows in a database, sealed updates and models as blobs, keys elsewhere."""
