"""A process that prints the number of GPUs that CUDA finds; it exits with 1 and the reason if that fails."""

import sys

from engine.backends.cuda import count_devices
from engine.errors import BackendUnavailable


def main() -> None:
    """Print the number."""
    try:
        print(count_devices())
    except BackendUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
