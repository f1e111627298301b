"""`python -m sheaf.cli`."""

from sheaf.cli.main import main

if __name__ == "__main__":
    main()
