"""`build-engines` with the graphs that the test run has traced: python -m fakes.build_engines TRACES ARGUMENT..."""

import signal
import sys
from pathlib import Path

from fakes.shared import share_traces

from export.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with SIGINT ignored
    share_traces(Path(sys.argv.pop(1)))
    main()
