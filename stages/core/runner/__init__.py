"""What surrounds a stage's work: command line, params, errors, locks, processes, checkpoints."""
