"""`python -m toast_cli` is `toast`."""

from toast_cli.cli.app import main

if __name__ == "__main__":
    main()
