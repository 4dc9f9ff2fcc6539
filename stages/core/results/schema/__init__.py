"""What stands in the metrics.json of each stage, every key spelled here and once."""
