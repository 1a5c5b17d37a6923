"""`actlake run`: several commands as one pipeline, each as soon as its inputs are there."""
