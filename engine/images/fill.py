"""Pixels for the masked part of an image, from the colours around it. Knows images; neither files nor models.

Colours spread inwards over a pyramid: the known pixels at ever lower resolutions fill the holes of the level above
(push-pull interpolation: Gortler and others, "The Lumigraph", 1996).
"""

from PIL import Image

INVERTED = list(range(255, -1, -1))
KNOWN = [0] + [255] * 255  # a pixel is known if any pixel that it stands for is


def fill_from_surroundings(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return an image whose masked pixels have smooth colours of those around them; all others stay as they are.

    Args:
        image: of mode "RGB".
        mask: of mode "L" and the same size; 0 for pixels to keep, 255 for others. If it keeps none, the image is
            returned unchanged.
    """
    if mask.getextrema() == (255, 255):
        return image
    level = image.convert("RGBA")
    level.putalpha(mask.point(INVERTED))
    finer = []
    while level.getchannel("A").getextrema() != (255, 255):
        finer.append(level)
        level = level.resize((-(-level.width // 2), -(-level.height // 2)), Image.Resampling.BOX)
        level.putalpha(level.getchannel("A").point(KNOWN))
    result = level.convert("RGB")
    for level in reversed(finer):
        result = result.resize(level.size, Image.Resampling.BILINEAR)
        result.paste(level.convert("RGB"), mask=level.getchannel("A"))
    return result
