"""The command line: the tasks, their help, their end."""
