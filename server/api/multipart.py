"""Bodies of multipart/form-data, read piece by piece as they arrive. Knows parts and limits; not what parts mean.

starlette's reader is not used: it writes files to disk and bounds neither one file nor all of them.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.api import errors

KIND = "multipart/form-data"
MAX_PARTS = 128
MAX_HEADERS, MAX_HEADER = 8, 4096  # of a part; bytes of each
MAX_NAME = 256  # bytes
NUMBERED = re.compile(r"([^\[\]]+)\[[0-9]*\]")  # "image[]" and "image[1]" are names of several files


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a body.

    Attributes:
        texts: values by name; empty ones are left out, as are files without a name and content, which a browser sends
            for an empty input. A file in ASCII without a file name is a text.
        files: the first file of each name.
        unused: names of further files, such as "image[1]".
    """

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Limits of a form, in bytes: of each file, and of all texts together."""

    file: int
    texts: int


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a body from its content type.

    Raises:
        ApiError: 415, it is no form; 400, it has no boundary.
    """
    kind, options = parse_options_header(content_type)
    if kind != KIND.encode():
        raise errors.ApiError(415, f"The content type must be {KIND}.", code="unsupported_media_type")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _invalid("the content type has no boundary")
    return boundary


class FormReader:
    """Reads a form.

    Args:
        boundary: between the parts.
        files: names of the fields that are files.

    Raises:
        ApiError: 400, the boundary is too long.
    """

    def __init__(self, boundary: bytes, limits: FormLimits, files: Collection[str]) -> None:
        self._parts = parts = _Parts(limits, files)
        try:
            self._parser = MultipartParser(  # whose callbacks know no parser: cycles would keep files in memory
                boundary,
                {
                    "on_part_begin": parts.begin_part,
                    "on_header_field": parts.take_header_name,
                    "on_header_value": parts.take_header_value,
                    "on_header_end": parts.end_header,
                    "on_headers_finished": parts.end_headers,
                    "on_part_data": parts.take,
                    "on_part_end": parts.end_part,
                    "on_end": parts.end,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER,
            )
        except FormParserError as error:
            raise _invalid(str(error)) from error

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return self._parts.size

    def feed(self, data: bytes) -> None:
        """Take a piece of the body.

        Raises:
            ApiError: 413, a file or the texts are too large; 400, the form is malformed.
        """
        if self._parts.has_ended:  # the standard allows text after the end, to be ignored
            return
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid(str(error)) from error

    def end(self) -> Form:
        """Return the form. Raises ApiError: 400, its end is missing."""
        if not self._parts.has_ended:
            raise _invalid("its end is missing")
        return Form(self._parts.texts, self._parts.files, tuple(self._parts.unused))


class _Parts:
    """The parts that have been read, and the one that is being read."""

    def __init__(self, limits: FormLimits, files: Collection[str]) -> None:
        self.texts: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.unused: list[str] = []
        self.size = 0
        self.has_ended = False
        self._limits, self._file_names = limits, files
        self._seen: Counter[str] = Counter()
        self._parts = self._text_bytes = 0
        self._part: _Part | None = None
        self._header, self._value = bytearray(), bytearray()

    def take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _invalid(f"it has more than {MAX_PARTS} parts")
        self._part = _Part()

    def end_header(self) -> None:
        assert self._part is not None
        if bytes(self._header).lower() == b"content-disposition":
            self._part.disposition = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def end_headers(self) -> None:
        """Decide what becomes of the part's content, once its name is known."""
        assert self._part is not None
        part = self._part
        kind, options = parse_options_header(part.disposition)
        name = _text(options.get(b"name", b""), "the name of a part")
        if kind != b"form-data" or not 0 < len(name) <= MAX_NAME:
            raise _invalid(f"a part has no name, or one of more than {MAX_NAME} characters")
        numbered = NUMBERED.fullmatch(name)
        part.name = numbered[1] if numbered and numbered[1] in self._file_names else name
        part.is_file = part.name in self._file_names
        part.has_file_name = bool(options.get(b"filename"))
        if not part.is_file and b"filename" in options:
            raise _unknown_file(name[: errors.ECHO], self._file_names)
        part.number = self._seen[part.name]
        if part.number and not part.is_file:
            raise errors.ApiError(
                400, f"{name[: errors.ECHO]!r} is there twice.", code="invalid_value", param=name[: errors.ECHO]
            )

    def take(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        part, count = self._part, end - start
        part.size += count
        if part.is_file and part.size > self._limits.file:
            raise too_large(part.name, self._limits.file)
        if not part.is_file:
            self._text_bytes += count
            if self._text_bytes > self._limits.texts:
                message = f"The texts of the form have more than {self._limits.texts} bytes."
                raise errors.ApiError(413, message, code="request_too_large")
        if part.number == 0:
            self.size += count
            part.content += data[start:end]

    def end_part(self) -> None:
        assert self._part is not None
        part, self._part = self._part, None
        if not part.size and not part.has_file_name:
            return
        self._seen[part.name] += 1
        if part.number:
            self.unused.append(f"{part.name}[{part.number}]")
        elif part.is_file and (part.has_file_name or not part.content.isascii()):
            self.files[part.name] = bytes(part.content)
        else:
            self.texts[part.name] = _text(bytes(part.content), repr(part.name[: errors.ECHO]))

    def end(self) -> None:
        self.has_ended = True


@dataclass(slots=True)
class _Part:
    """A part that is being read."""

    disposition: str = ""
    name: str = ""
    is_file: bool = False
    has_file_name: bool = False
    number: int = 0  # among the parts of its name; only the first is kept
    size: int = 0
    content: bytearray = field(default_factory=bytearray)


def too_large(name: str, most: int) -> errors.ApiError:
    """Return the error of a file that is too large."""
    message = f"{name} has more than {most} bytes; send a smaller file."
    return errors.ApiError(413, message, code="file_too_large", param=name)


def _unknown_file(name: str, files: Collection[str]) -> errors.ApiError:
    message = f"{name!r} is no file that this endpoint takes; the files are {', '.join(files)}."
    return errors.ApiError(400, message, code="unknown_parameter", param=name)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{what} is not UTF-8") from error


def _invalid(reason: str) -> errors.ApiError:
    return errors.ApiError(400, f"The body is not a valid form: {reason}.", code="invalid_multipart")
