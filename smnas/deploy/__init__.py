"""What becomes of a detector that a search has found: training, evaluation, prediction, export."""
