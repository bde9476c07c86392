"""TensorRT's own words for what it refuses, and the exceptions that they become.

Knows messages; not plans or contexts.
"""

from typing import Any

from engine.backends.cuda import Cuda
from engine.errors import DeviceError, OutOfDeviceMemory, ZImageError

MAX_ERRORS = 100  # kept; a loop of failures must not fill the memory


class Refusals:
    """Checks of what TensorRT returns and raises, with its own words in the message.

    TensorRT gives errors to a recorder, in whichever thread they occur, its own included. The recorder is Python, so
    that thread needs the interpreter's lock, but only for an error. Warnings go to a logger in C++, which prints them
    to stdout: one in Python would take the lock for each of thousands of messages, also in threads that compile
    kernels, while a thread that holds it waits for them.
    """

    def __init__(self, trt: Any, cuda: Cuda) -> None:
        self.recorder = _make_recorder(trt)
        self.logger = trt.Logger(trt.Logger.WARNING)
        self._name, self._cuda = trt.__name__, cuda

    def require(self, accepted: bool, what: str) -> None:
        """Raise DeviceError if TensorRT has not accepted something."""
        if not accepted:
            raise self.failure(f"refuses {what}", DeviceError)

    def require_silence(self, what: str) -> None:
        """Raise DeviceError if an error was recorded, after a call that returns nothing."""
        self.require(not self.recorder.errors, what)

    def forget(self) -> None:
        """Forget errors that led to no exception, before a call whose errors matter."""
        self.recorder.errors.clear()

    def take_words(self) -> str:
        """Return the errors since they were last taken."""
        words = "; ".join(self.recorder.errors) or "no reason given"
        self.recorder.errors.clear()
        return words

    def failure(self, what: str, kind: type[ZImageError]) -> ZImageError:
        """Return the error for a call that TensorRT has just refused, with its own words.

        Raises:
            DeviceError: the GPU context is lost.
        """
        words = self.take_words()
        try:
            self._cuda.require_context()
        except DeviceError as lost:
            raise DeviceError(f"{self._name} {what}: {words}; {lost}", sticky=lost.sticky) from lost
        if "out of memory" in words.lower():
            return OutOfDeviceMemory(
                f"{self._name} {what}, since GPU memory is full: {words}; serve fewer profiles (--profile), or "
                "load prompt encoder and denoiser one at a time (--offload)"
            )
        return kind(f"{self._name} {what}: {words}")


def _make_recorder(trt: Any) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        """Keeps the words of errors. Any thread may report one; a list's methods are atomic."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[str] = []

        def report_error(self, _code: Any, words: str) -> bool:
            if len(self.errors) < MAX_ERRORS:
                self.errors.append(words)
            return False  # not fatal: the call that failed says so

        def clear(self) -> None:
            self.errors.clear()

        def num_errors(self) -> int:
            return len(self.errors)

        get_num_errors = num_errors  # the name that TensorRT's bindings look up; `num_errors` is the documented one

        def has_overflowed(self) -> bool:
            return len(self.errors) >= MAX_ERRORS

        def get_error_code(self, _index: int) -> Any:
            return trt.ErrorCodeTRT.UNSPECIFIED_ERROR

        def get_error_desc(self, index: int) -> str:
            return self.errors[index]

    return Recorder()
