"""Records of images: names for content."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from msgspec.structs import replace

from moorage.containerd import types
from moorage.containerd._proto import empty_pb2, field_mask_pb2, moorage_images_pb2
from moorage.containerd.calls import wire
from moorage.containerd.calls.storage_base import StorageCalls

__all__ = ("ImageCalls",)

_IMAGES = "/containerd.services.images.v1.Images/"


class ImageCalls(StorageCalls):
    """Records of images."""

    async def create_image(self, image: types.Image) -> None:
        """Write a record: last, because it references everything else. Raises: Conflict."""
        marked = replace(image, labels={**self._marks, **image.labels})
        request = moorage_images_pb2.ImageMessage(image=wire.image_message(marked))
        await self._call(_IMAGES + "Create", request, moorage_images_pb2.ImageMessage)

    async def update_image(self, image: types.Image) -> None:
        """Replace target and labels of a record in one step. Raises: NotFound."""
        request = moorage_images_pb2.UpdateImageRequest(
            image=wire.image_message(image), update_mask=field_mask_pb2.FieldMask(paths=["target", "labels"])
        )
        await self._call(_IMAGES + "Update", request, moorage_images_pb2.ImageMessage)

    async def get_image(self, name: str) -> types.Image:
        """A record. Raises: NotFound."""
        request = moorage_images_pb2.GetImageRequest(name=name)
        return wire.image((await self._call(_IMAGES + "Get", request, moorage_images_pb2.ImageMessage)).image)

    async def list_images(self) -> list[types.Image]:
        """Every record of the namespace."""
        request = moorage_images_pb2.ListImagesRequest()
        reply = await self._call(_IMAGES + "List", request, moorage_images_pb2.ListImagesResponse)
        return [wire.image(image) for image in reply.images]

    async def delete_image(self, name: str, *, collect: bool = False) -> None:
        """Remove a record; with ``collect`` return after what only it referenced is removed. Raises: NotFound."""
        request = moorage_images_pb2.DeleteImageRequest(name=name, sync=collect)
        await self._slow_call(_IMAGES + "Delete", request, empty_pb2.Empty)
