"""An ``.npz`` file, opened without reading more than must be read: a zip archive of ``.npy`` files."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from framework.errors import UserError

BROKEN = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
"""What a file that is damaged, encrypted or no ``.npz`` makes numpy and zipfile raise."""

_READ = 2**20  # bytes
_HEADERS: dict[tuple[int, int], Callable[[BinaryIO], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By the version of ``.npy``; arrays of numbers have one of these."""


class Arrays:
    """The arrays of an open ``.npz`` file.

    Args:
        path: the file.
        archive: it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        self._read: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def identity(self) -> str:
        """A digest of the arrays that were read: their names, lengths and checksums, as the archive has them."""
        about = [(name, info.CRC, info.file_size) for name in self._read if (info := self._info(name))]
        return blake2b(repr(about).encode(), digest_size=8).hexdigest()

    def get(self, name: str) -> npt.NDArray[Any]:
        """An array whose checksum is right: mapped into memory, or read where it is compressed.

        Raises:
            UserError: it would have to be unpickled.
            OSError, ValueError ...: one of ``BROKEN``.
        """
        self._read.append(name)
        info = self._info(name)
        if info.compress_type != zipfile.ZIP_STORED:
            content = self.archive.read(info)
            dtype, shape, order, start = self._header(io.BytesIO(content), name)
            return np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape, order=order)
        self._check(info)
        with open(self.path, "rb") as file:
            # The local header's extra field may differ from the directory's: 26 bytes, two lengths, name, extra field.
            file.seek(info.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            dtype, shape, order, start = self._header(file, name)
        # An empty file cannot be mapped.
        return np.memmap(self.path, dtype, "r", start, shape, order) if math.prod(shape) else np.empty(shape, dtype)

    def _check(self, info: zipfile.ZipInfo) -> None:
        """Read to the end, where zipfile compares the checksum."""
        with self.archive.open(info) as member:
            while member.read(_READ):
                pass

    def _info(self, name: str) -> zipfile.ZipInfo:
        return self.archive.getinfo(f"{name}.npy")

    def _header(self, file: BinaryIO, name: str) -> tuple[np.dtype[Any], tuple[int, ...], Any, int]:
        """Type, shape, order of axes and place of the numbers of the ``.npy`` file that begins where ``file`` is."""
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            raise UserError(f"{self.path}: {name} holds Python objects, which are not read; store numbers")
        return dtype, shape, "F" if fortran else "C", file.tell()
