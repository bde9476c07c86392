"""The command `zimage-serve`, also `python -m server`: `server.cli`, whose imports take a second."""

from engine.command_line import one_line_errors


def main() -> None:
    """Run the server; Ctrl-C before it listens exits with 130."""
    with one_line_errors("zimage-serve"):
        from server import cli

        cli.main()


if __name__ == "__main__":
    main()
