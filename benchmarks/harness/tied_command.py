"""Commands of child processes that do not outlive this process."""

import shutil
from collections.abc import Sequence


def tied(command: Sequence[str]) -> list[str]:
    """Return a command that is killed when the thread that starts it ends, also by SIGKILL.

    It needs setpriv, of util-linux; without it, the command is returned as it is.
    """
    return [*(["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []), *command]
