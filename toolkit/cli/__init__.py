"""The command line, one file per noun. Nobody imports it but `__main__`."""
