"""The registry of options: a folder is a kind, a file is an option, its name is the option's name everywhere."""
