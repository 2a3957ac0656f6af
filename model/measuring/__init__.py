"""What weights are worth: cases and their scores, figures with intervals, nuisances, shortcuts, reports."""
