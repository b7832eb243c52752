"""Run the command line as ``python -m simagent``."""

from simagent.cli import main

if __name__ == "__main__":
    main()
