"""`python -m togi`."""

from togi.cli import main

if __name__ == "__main__":
    main()
