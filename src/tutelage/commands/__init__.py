"""The command line, a file per matter: parse, call one function, print."""
