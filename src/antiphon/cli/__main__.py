"""`python -m antiphon.cli`."""

from antiphon.cli import main

if __name__ == "__main__":
    main()
