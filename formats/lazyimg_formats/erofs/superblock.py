"""The superblock and the table of device slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg_formats.checksums import crc32c
from lazyimg_formats.erofs.layout import (
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    MAX_BLOCK_BITS,
    MAX_DEVICES,
    MIN_BLOCK_BITS,
    NANOSECONDS,
    FeatureCompat,
    FeatureIncompat,
    erofs_deviceslot,
    erofs_super_block,
)
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUPERBLOCK_SIZE: Final = erofs_super_block.size
SLOT_SIZE: Final = erofs_deviceslot.size

_UNSUPPORTED: Final = FeatureIncompat.EIGHT_BYTE_ADDRESSES | FeatureIncompat.METABOX
_NO_COMPAT: Final = FeatureCompat(0)
_NO_INCOMPAT: Final = FeatureIncompat(0)
_CHECKSUM: Final = slice(4, 8)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an image says of itself.

    Attributes:
        block_bits: a block has 2**block_bits bytes.
        root_nid: the root's inode.
        inodes: how many inodes there are; for statfs(2).
        blocks: of the image itself, without devices.
        uuid: 16 bytes.
        checksum: see `compute_checksum`; says nothing unless `compat` has SB_CHKSUM.
        compat: features that a reader may ignore.
        incompat: features that a reader must know.
        epoch: seconds: what compact inodes' mtimes count from.
        fixed_nsec: compact inodes' nanoseconds.
        meta_block: where nids count from, in blocks.
        xattr_block: where shared attributes' numbers count from, in blocks.
        devices: slots in the table.
        slot_offset: where the table begins, in units of 128 bytes.
        volume_name: without its padding.
        extension_slots: of 16 bytes each, behind the superblock.
        compressions: bits of the algorithms used.
        prefix_count: long attribute prefixes.
        prefix_start: where they begin, in units of 4 bytes.
        packed_nid: an inode that holds the tails of others, and long prefixes.
        build_time: seconds added to `epoch`.
    """

    block_bits: int
    root_nid: int
    inodes: int
    blocks: int
    uuid: bytes
    checksum: int = 0
    compat: FeatureCompat = _NO_COMPAT
    incompat: FeatureIncompat = _NO_INCOMPAT
    epoch: int = 0
    fixed_nsec: int = 0
    meta_block: int = 0
    xattr_block: int = 0
    devices: int = 0
    slot_offset: int = 0
    volume_name: bytes = b""
    extension_slots: int = 0
    compressions: int = 0
    prefix_count: int = 0
    prefix_start: int = 0
    packed_nid: int = 0
    build_time: int = 0

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return 1 << self.block_bits


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """A device that the image's files lie on.

    Attributes:
        tag: its name, without padding.
        blocks: its size; 0 if the image's maker did not say.
        start: its first block in the unified space; 0: it is not mapped there.
    """

    tag: bytes
    blocks: int
    start: int


def parse_superblock(data: bytes) -> Superblock:
    """Give the superblock in its 128 bytes.

    Raises:
        FormatError: another length or magic, a feature that this package does not know, a block
            size that cannot be, too many devices.
    """
    raw = erofs_super_block.decode(data)
    if raw.magic != EROFS_SUPER_MAGIC_V1:
        raise FormatError(
            "erofs_super_block", f"magic is {raw.magic:#x}, expected {EROFS_SUPER_MAGIC_V1:#x}"
        )
    incompat = FeatureIncompat(raw.feature_incompat)
    unknown = raw.feature_incompat & ~sum(FeatureIncompat) | incompat & _UNSUPPORTED
    if unknown:
        raise FormatError("erofs_super_block", f"features {unknown:#x} are not supported")
    if not MIN_BLOCK_BITS <= raw.blkszbits <= MAX_BLOCK_BITS or raw.dirblkbits:
        raise FormatError(
            "erofs_super_block",
            f"blocks of 2**{raw.blkszbits} bytes, directory blocks of 2**{raw.dirblkbits} of them",
        )
    if raw.extra_devices > MAX_DEVICES:
        raise FormatError(
            "erofs_super_block", f"{raw.extra_devices} devices, at most {MAX_DEVICES}"
        )
    if raw.fixed_nsec >= NANOSECONDS:
        raise FormatError("erofs_super_block", f"{raw.fixed_nsec} nanoseconds")
    return Superblock(
        block_bits=raw.blkszbits,
        root_nid=raw.rootnid_2b,
        inodes=raw.inos,
        blocks=raw.blocks_lo,
        uuid=raw.uuid,
        checksum=raw.checksum,
        compat=FeatureCompat(raw.feature_compat),
        incompat=incompat,
        epoch=raw.epoch - (raw.epoch >> 63 << 64),
        fixed_nsec=raw.fixed_nsec,
        meta_block=raw.meta_blkaddr,
        xattr_block=raw.xattr_blkaddr,
        devices=raw.extra_devices,
        slot_offset=raw.devt_slotoff,
        volume_name=raw.volume_name.rstrip(b"\0"),
        extension_slots=raw.sb_extslots,
        compressions=raw.available_compr_algs,
        prefix_count=raw.xattr_prefix_count,
        prefix_start=raw.xattr_prefix_start,
        packed_nid=raw.packed_nid,
        build_time=raw.build_time,
    )


def serialize_superblock(superblock: Superblock) -> bytes:
    """Give the superblock's 128 bytes.

    Raises:
        FormatError: a number that does not fit.
    """
    if len(superblock.volume_name) > 15 or len(superblock.uuid) != 16:
        raise FormatError(
            "erofs_super_block",
            f"volume name {superblock.volume_name!r}, UUID of {len(superblock.uuid)} bytes",
        )
    return erofs_super_block.encode(
        magic=EROFS_SUPER_MAGIC_V1,
        checksum=superblock.checksum,
        feature_compat=int(superblock.compat),
        blkszbits=superblock.block_bits,
        sb_extslots=superblock.extension_slots,
        rootnid_2b=superblock.root_nid,
        inos=superblock.inodes,
        epoch=superblock.epoch % (1 << 64),
        fixed_nsec=superblock.fixed_nsec,
        blocks_lo=superblock.blocks,
        meta_blkaddr=superblock.meta_block,
        xattr_blkaddr=superblock.xattr_block,
        uuid=superblock.uuid,
        volume_name=superblock.volume_name.ljust(16, b"\0"),
        feature_incompat=int(superblock.incompat),
        available_compr_algs=superblock.compressions,
        extra_devices=superblock.devices,
        devt_slotoff=superblock.slot_offset,
        dirblkbits=0,
        xattr_prefix_count=superblock.prefix_count,
        xattr_prefix_start=superblock.prefix_start,
        packed_nid=superblock.packed_nid,
        xattr_filter_reserved=0,
        build_time=superblock.build_time,
        rootnid_8b=0,
    )


def checksum_range(block_bits: int) -> range:
    """Give the bytes of an image that its superblock's checksum covers."""
    size = 1 << block_bits
    if size > EROFS_SUPER_OFFSET:
        return range(EROFS_SUPER_OFFSET, size)
    return range(EROFS_SUPER_OFFSET, EROFS_SUPER_OFFSET + size)


def compute_checksum(data: bytes | bytearray) -> int:
    """Give the checksum of the bytes of `checksum_range`, whatever its own field holds."""
    covered = bytearray(data)
    covered[_CHECKSUM] = bytes(4)
    return crc32c(covered)


def parse_slots(data: bytes) -> tuple[DeviceSlot, ...]:
    """Give the device slots in the bytes of a table.

    Raises:
        FormatError: part of a slot is left over, or a slot needs 48-bit addresses.
    """
    if len(data) % SLOT_SIZE:
        raise FormatError("erofs_deviceslot", f"a table of {len(data)} bytes")
    slots = []
    for position in range(0, len(data), SLOT_SIZE):
        raw = erofs_deviceslot.decode(data[position : position + SLOT_SIZE])
        if raw.blocks_hi or raw.uniaddr_hi:
            raise FormatError("erofs_deviceslot", "48-bit addresses are not supported")
        slots.append(DeviceSlot(raw.tag.rstrip(b"\0"), raw.blocks_lo, raw.uniaddr_lo))
    return tuple(slots)


def serialize_slots(slots: Sequence[DeviceSlot]) -> bytes:
    """Give the bytes of a table of device slots.

    Raises:
        FormatError: a tag or a number does not fit.
    """
    parts = []
    for slot in slots:
        if len(slot.tag) > 64 or b"\0" in slot.tag:
            raise FormatError("erofs_deviceslot", f"impossible tag {slot.tag[:80]!r}")
        parts.append(
            erofs_deviceslot.encode(
                tag=slot.tag.ljust(64, b"\0"),
                blocks_lo=slot.blocks,
                uniaddr_lo=slot.start,
                blocks_hi=0,
                uniaddr_hi=0,
            )
        )
    return b"".join(parts)
