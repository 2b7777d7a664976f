"""lmms-eval tasks of our own, one folder per data set."""
