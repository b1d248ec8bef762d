"""Runs the command line: `python -m kerasrlhf`."""

from kerasrlhf.cli.commands import main

if __name__ == "__main__":
    main()
