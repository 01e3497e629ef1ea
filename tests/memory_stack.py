"""Volumes in memory, read like a stack."""


class Memory:
    """Volumes ``[n, z, y, x]`` with the reading part of a stack."""

    def __init__(self, volumes):
        self.volumes = volumes
        self.box = volumes.shape[-1]

    def __len__(self):
        return len(self.volumes)

    def read(self, indices):
        return self.volumes[indices]
