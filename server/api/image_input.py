"""Images that requests bring along: their limits, and their way from a body to an `InitImage`.

Knows bodies and bytes; neither routes nor pixels.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

from fastapi import Request
from pydantic import BaseModel

from engine.errors import InvalidRequest
from engine.images.preparation import MASK_BLUR, Preparation, ResizeMode
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import IMG2IMG_STRENGTH, INPAINT_STRENGTH, Edit, ImageRequest
from engine.size import SizeLimits
from server.api import errors, multipart
from server.api.base64_images import all_from_base64, base64_length, hashes_of
from server.api.body import MAX_BODY, is_json, read_body, read_pieces
from server.api.client import client_of
from server.api.fields import InitImageFields
from server.api.held_bytes import HeldBytes
from server.api.multipart import Form, FormLimits, FormReader
from server.uploads.limits import MAX_UPLOAD

Body = TypeVar("Body", bound=InitImageFields)
AnyBody = TypeVar("AnyBody", bound=BaseModel)

FORM_FILES = 4  # times the largest file that a form may have; further images are read and dropped
HELD_FILES = 8  # largest files that may be read at a time
KEPT = ("image", "mask")


@dataclass(slots=True)
class Upload:
    """An image to start from, as a client sent it, and what to do with it.

    Its files are taken out once, since requests wait for their images much longer than for this.

    Attributes:
        image, mask: bytes of the files.
        strength: 0 to 1; None for the default, 0.6 without a mask and 1 with one.
        resize_mode, padding_mask_crop, mask_blur, alpha_is_mask, mask_is_inverted, is_filled, image_param, mask_param:
            fields of `engine.images.preparation.Preparation`.
    """

    image: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    strength: float | None = None
    resize_mode: ResizeMode = "crop"
    padding_mask_crop: int | None = None
    mask_blur: int = MASK_BLUR
    alpha_is_mask: bool = False
    mask_is_inverted: bool = False
    is_filled: bool = False
    image_param: str = "init_image"
    mask_param: str = "mask"

    def take(self) -> tuple[bytes, bytes | None]:
        """Return the image and the mask, and forget them."""
        image, mask, self.image, self.mask = self.image, self.mask, b"", None
        return image, mask

    def check(self, image: ImageRequest, manifest: Manifest, loras: Collection[str]) -> None:
        """Check what can be known without decoding the files. Raises InvalidRequest."""
        default = IMG2IMG_STRENGTH if self.mask is None else INPAINT_STRENGTH
        edit = Edit(default if self.strength is None else self.strength, "", self.mask is not None)
        replace(image, edit=edit).check(manifest, loras)

    def preparation(self, limits: SizeLimits, image: ImageRequest) -> Preparation:
        """Return how the files are prepared for a request."""
        return Preparation(
            limits,
            image.width,
            image.height,
            self.resize_mode,
            self.padding_mask_crop,
            self.mask_blur,
            self.alpha_is_mask,
            self.mask_is_inverted,
            self.is_filled,
            image_param=self.image_param,
            mask_param=self.mask_param,
        )


class Decoder(Protocol):
    """Decodes and prepares untrusted images: `server.uploads`, or a fake."""

    async def prepare(
        self, image: bytes, mask: bytes | None, preparation: Preparation, client: str = ""
    ) -> InitImage: ...

    async def close(self) -> None: ...


class ImageInput:
    """Images as inputs of a server: their decoder and their limits.

    Args:
        decoder: None if the server takes no images.
        max_upload: bytes of a file.
    """

    def __init__(self, decoder: Decoder | None, max_upload: int = MAX_UPLOAD) -> None:
        self.max_upload = max_upload
        self.held = HeldBytes(HELD_FILES * max_upload, MAX_BODY)
        self._decoder = decoder

    @property
    def is_available(self) -> bool:
        """True if the server takes images."""
        return self._decoder is not None

    def require(self) -> Decoder:
        """Return the decoder of images. Raises ApiError: 400, the server takes none."""
        if self._decoder is None:
            raise errors.ApiError(
                400,
                "This server takes no images: its plans have no VAE encoder, or it was started with --no-image-input.",
                code="image_input_unavailable",
            )
        return self._decoder

    async def prepare(self, upload: Upload, preparation: Preparation, client: str) -> InitImage:
        """Decode and prepare an upload.

        Raises:
            InvalidRequest: it cannot be used.
            UploadsBusy: too many wait to be decoded, or too many bytes.
            ApiError: 400, the server takes no images.
        """
        image, mask = upload.take()
        with self.held.reading(client) as held:
            held.grow(len(image) + len(mask or b""))
            return await self.require().prepare(image, mask, preparation, client)

    async def close(self) -> None:
        """End the decoder's process."""
        if self._decoder is not None:
            await self._decoder.close()

    @property
    def max_body(self) -> int:
        """Bytes of a JSON body: an image and a mask as base64, and the other fields."""
        return MAX_BODY + len(KEPT) * base64_length(self.max_upload) if self.is_available else MAX_BODY


def image_input(request: Request) -> ImageInput:
    """Return the image input of a request's server."""
    found: ImageInput = request.app.state.image_input
    return found


async def read_body_with_images(request: Request, owner: str | None, model: type[AnyBody]) -> AnyBody:
    """Read a JSON body that may have images as base64. See `read_body`.

    Raises:
        UploadsBusy: too many large bodies are being read.
    """
    images = image_input(request)
    with images.held.reading(client_of(request, owner)) as held:
        return await read_body(request, model, images.max_body, held.grow)


async def read_form(request: Request, owner: str | None, files: Collection[str] = KEPT) -> Form:
    """Read a form with images.

    Raises:
        ApiError: 400, the server takes no images, or the form is malformed; 403, a page sent it without asking first;
            408, it did not arrive in time; 413, it is too large; 415, it is no form, or is compressed.
        UploadsBusy: too many large bodies are being read.
    """
    images = image_input(request)
    images.require()  # before anything is read
    _refuse_pages(request)
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise errors.ApiError(415, "A form must not be compressed.", code="unsupported_content_encoding")
    boundary = multipart.boundary_of(request.headers.get("content-type", ""))
    form = FormReader(boundary, FormLimits(images.max_upload, MAX_BODY), files)
    with images.held.reading(client_of(request, owner)) as held:
        async for piece in read_pieces(request, FORM_FILES * images.max_upload + MAX_BODY):
            form.feed(piece)
            held.grow(form.size)
        return form.end()


def _refuse_pages(request: Request) -> None:
    """Refuse a form of another site's page, which browsers send to any server without asking first (CORS).

    Browsers send `Origin` with every POST, other clients do not. Before they send a Bearer token or `x-api-key`, they
    ask.
    """
    headers = request.headers
    has_asked = headers.get("authorization", "").lower().startswith("bearer ") or "x-api-key" in headers
    if "origin" in headers and not has_asked and not is_json(request):
        raise errors.ApiError(403, "A page must send images as application/json.", code="foreign_origin")


async def take_upload(
    body: Body,
    images: ImageInput,
    files: Mapping[str, bytes] = MappingProxyType({}),
    *,
    alpha_is_mask: bool = False,
    image_param: str = "init_image",
) -> tuple[Body, Upload | None]:
    """Return a body and its image to start from; hashes stand in the body where the images were.

    Args:
        files: an image and a mask that came beside the body, by these names; those in the body are base64.
        alpha_is_mask: see `engine.images.preparation.Preparation`.
        image_param: the client's name of the image.

    Raises:
        ApiError: 400, the server takes no images, or one is no base64; 413, one is too large.
        InvalidRequest: there is a mask without an image, or one came twice.
    """
    texts = {name: text for name, text in (("image", body.init_image), ("mask", body.mask)) if text is not None}
    if not texts and not files:
        return body, None
    images.require()
    names = {"image": image_param, "mask": "mask"}
    if twice := sorted(texts.keys() & files.keys()):
        raise InvalidRequest(f"{names[twice[0]]} is there as a file and as text; send one of them", names[twice[0]])
    if "image" not in texts and "image" not in files:
        raise InvalidRequest(f"mask needs an image to start from: send {image_param} too", "mask")
    named = {names[name]: text for name, text in texts.items()}
    decoded = await all_from_base64(named, images.max_upload)
    image = files.get("image") or decoded.get(image_param, b"")
    mask = files.get("mask", decoded.get("mask"))
    hashes = await hashes_of({"init_image": image, "mask": mask})
    upload = Upload(
        image,
        mask,
        body.strength,
        body.resize_mode,
        body.padding_mask_crop,
        body.mask_blur,
        alpha_is_mask,
        image_param=image_param,
    )
    return body.model_copy(update=hashes), upload
