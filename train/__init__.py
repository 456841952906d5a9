"""Training: recipe → loop → report. The command line is `python -m train`."""
