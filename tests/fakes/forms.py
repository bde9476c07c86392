"""Forms (multipart/form-data) as clients send them, and malformed ones."""

from collections.abc import Iterator, Sequence

BOUNDARY = b"-----boundary"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}

PartData = tuple[str, bytes, str | None]  # name, content, and the file's name


def part(name: str, content: bytes, filename: str | None = None, *, boundary: bytes = BOUNDARY) -> bytes:
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (boundary, disposition.encode(), content)


def form(*parts: PartData, boundary: bytes = BOUNDARY) -> bytes:
    return b"".join(part(*each, boundary=boundary) for each in parts) + b"--%s--\r\n" % boundary


def malformed(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and variants of a form that no client would send; none is a whole form."""
    for at in range(0, len(whole) - len(BOUNDARY) - 4, max(1, len(whole) // 60)):
        yield f"cut at {at}", whole[:at]
    yield "other boundary", whole.replace(BOUNDARY, b"other")
    yield "no line ends", whole.replace(b"\r\n", b"")
    yield "newlines alone", whole.replace(b"\r\n", b"\n")
    yield "no disposition", whole.replace(b"Content-Disposition", b"Content-Nothing")
    yield "no name", whole.replace(b"name=", b"label=")
    yield "empty name", form(("", b"x", None))
    yield "attachment", whole.replace(b"form-data", b"attachment")
    yield "long name", form(("n" * 300, b"x", None))
    yield "long header", whole.replace(b"form-data", b"form-data; " + b"x" * 5000)
    yield "many headers", whole.replace(b"Content-Disposition", b"".join(b"X-%d: 1\r\n" % n for n in range(20)) + b"X")
    yield "bad header", whole.replace(b"Content-Disposition", b"Content Disposition")
    yield "empty header", whole.replace(b"Content-Disposition", b"")
    yield "name that is no UTF-8", whole.replace(b'name="', b'name="\xff')
    yield "many parts", form(*[(f"field{n}", b"", None) for n in range(200)])
    yield "many texts", form(*[(f"field{n}", b"x", None) for n in range(200)])
    yield "many files", form(*[("image", b"x", "x.png")] * 200)
    yield "end alone", b"--%s--\r\n" % b"other"
    yield "nothing", b""
    yield "zeros", bytes(10_000)
    yield "dashes", b"-" * 10_000


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Yield data in pieces of sizes that repeat."""
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at, number = at + size, number + 1
