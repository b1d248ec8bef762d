"""Adding records that are made from those that are there."""
