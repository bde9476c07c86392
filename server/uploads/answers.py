"""Answers of the decoder's process, which a hostile file may have taken over: nothing in them is believed unchecked."""

from typing import Annotated

import msgspec

from engine.init_image import Box, InitImage, Paste
from engine.size import Size

MAX_JSON = 1 << 16  # bytes
MAX_PARTS = 256 << 20  # bytes of pixels and masks of one answer
MAX_SIDE = 65535  # pixels

Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Note = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*\Z")]  # a line of a header


class InvalidAnswer(Exception):
    """An answer that no intact process gives; the process must be replaced."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer's JSON. `lengths` are those of the parts after it."""

    lengths: Annotated[tuple[int, ...], msgspec.Meta(max_length=4)] = ()


class Decoding(Answer, frozen=True, tag="decoding"):
    """The process begins to decode the file of another field."""

    param: Text


class Refused(Answer, frozen=True, tag="refused"):
    """The upload cannot be used."""

    message: Text
    param: Text


class OutOfMemory(Answer, frozen=True, tag="out_of_memory"):
    """The file of a field takes more memory than the process may use."""

    param: Text


class Crashed(Answer, frozen=True, tag="crashed"):
    """The process ends after an error that nobody expected."""

    message: Text


class PastePlace(msgspec.Struct, frozen=True):
    """Size of the original, and the box in it."""

    size: tuple[Side, Side]
    box: tuple[Side, Side, Side, Side]


class Prepared(Answer, frozen=True, tag="prepared"):
    """An `InitImage` without its parts: pixels, mask, and the original's pixels and mask, as far as there are any."""

    size: tuple[Side, Side]
    notes: Annotated[tuple[Note, ...], msgspec.Meta(max_length=8)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    paste: PastePlace | None = None

    def init_image(self, parts: list[bytes]) -> InitImage:
        """Return the image with its parts.

        Raises:
            InvalidAnswer: the parts are not those of its sizes.
        """
        size = Size(*self.size)
        expected = [3 * size.area]
        mask, paste = None, None
        if len(parts) in (2, 4):
            expected.append(size.area)
            mask = parts[1]
        if self.paste is not None:
            original, box = Size(*self.paste.size), Box(*self.paste.box)
            is_inside = box.left < box.right <= original.width and box.top < box.bottom <= original.height
            if not is_inside:
                raise InvalidAnswer(f"a box {tuple(box)} in an image of {original}")
            expected += [3 * original.area, box.size.area]
            paste = Paste(original, parts[-2], box, parts[-1]) if len(parts) > 2 else None
        if [len(part) for part in parts] != expected or not size.area:
            raise InvalidAnswer(f"parts of {[len(part) for part in parts]} bytes instead of {expected}")
        return InitImage(size, parts[0], mask, paste, self.notes, self.sha256)


def decode_answer(data: bytes) -> Decoding | Refused | OutOfMemory | Crashed | Prepared:
    """Read an answer's JSON.

    Raises:
        InvalidAnswer: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Decoding | Refused | OutOfMemory | Crashed | Prepared)
    except msgspec.DecodeError as error:
        raise InvalidAnswer(str(error)) from error
