"""`build-engines` with the graphs that the test run has traced: python -m fakes.build_engines TRACES ARGUMENT..."""

import sys
from pathlib import Path

from fakes.shared import share_traces

from export.cli import main

if __name__ == "__main__":
    share_traces(Path(sys.argv.pop(1)))
    main()
