"""What is said of a containerd's data that is damaged on the disk."""

from moorage import errors

__all__ = ("DamagedContent",)


class DamagedContent(errors.Conflict):
    """A blob that containerd has by name, but whose bytes are not those of its digest, or are gone."""

    def __init__(self, digest: str, damage: str) -> None:
        super().__init__(f"blob {digest} in containerd's content store is damaged: {damage}")
        self.digest = digest
        self.damage = damage
        """What is wrong with it, as text."""
