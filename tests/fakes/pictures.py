"""Image files and masks as clients send them."""

import base64
import io

from PIL import Image

SIZE = (64, 96)  # width, height
RED = 200


def picture(size: tuple[int, int] = SIZE, colour: tuple[int, ...] = (RED, 20, 30), kind: str = "PNG") -> bytes:
    return saved(Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour), kind)


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def left_half(size: tuple[int, int] = SIZE, *, transparent: bool = False) -> bytes:
    """Return a mask that draws the left half anew: white on black, or transparent."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0) if transparent else (255, 255, 255, 255), (0, 0, size[0] // 2, size[1]))
    return saved(mask if transparent else mask.convert("L"))


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
