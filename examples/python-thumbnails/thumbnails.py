"""Makes a thumbnail of an image: base64 in, base64 out.

Pillow is compiled code, and comes as a wheel for the function's Python, not the builder's.
"""

import base64
import binascii
import io
import logging

from PIL import Image, UnidentifiedImageError

logger = logging.getLogger()
logger.setLevel(logging.INFO)

# An image of a few kilobytes can claim a size that takes all memory there is.
Image.MAX_IMAGE_PIXELS = 50_000_000


class NotAnImage(ValueError):
    """The caller's mistake; its name is what they see as errorType."""


def handler(event, context):
    width = int(event.get("width", 128))
    if not 1 <= width <= 1024:
        raise ValueError(f"width must be between 1 and 1024, not {width}")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(event["image"], validate=True)))
        original = image.size
        image.thumbnail((width, width))
    except (binascii.Error, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise NotAnImage(str(error)) from error
    made = io.BytesIO()
    image.convert("RGB").save(made, "JPEG", quality=80, optimize=True)
    logger.info("%sx%s -> %sx%s, %s bytes", *original, *image.size, made.tell())
    return {
        "width": image.width,
        "height": image.height,
        "type": "image/jpeg",
        "image": base64.b64encode(made.getvalue()).decode(),
    }
