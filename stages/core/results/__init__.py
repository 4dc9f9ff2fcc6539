"""What stages leave for people and for each other: metrics, predictions, pictures."""
