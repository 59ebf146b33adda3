"""The command line, one file a noun. Nobody imports it but `__main__`."""
