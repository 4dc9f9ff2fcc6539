"""What is handed on: the report, the model card, and the release's own script."""
