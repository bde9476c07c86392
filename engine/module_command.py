"""Commands that run a module of this project in a process of its own. Knows paths; no modules.

`python -m` would import `server.py`, `engine.py` or `random.py` from the current directory.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = (
    "import sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; root in sys.path or sys.path.insert(0, root); "
    "import runpy; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as a script, beside this module and from any directory."""
    return [sys.executable, "-P", "-c", START, str(ROOT), module, *arguments]
