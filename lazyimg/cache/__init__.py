"""Our own cache: devices as sparse files, and which of their blocks are present.

For the transports under which EROFS is mounted from plain files (the kernel's cache, under
cachefiles, does the same for its objects). A `DeviceFile` is where a device's bytes go
(`lazyimg.fill.ports.Sink`) and where a transport reads those that are present; a `DeviceCache` has
all of them, one object for each name.

On disk, below the cache's directory:

    <name>/data              the device, sparse, exactly its size
    <name>/present           durable record: one bit for each block (`record`)
    <name>/written.<boot>    the same, valid until this machine is restarted
    .new-*, .gone-*          devices that are being made (also whole ones, see `stage`) or removed

Rules:
  - A block is marked present when its bytes are in the file, never before. So a record may say less
    than is true, never more.
  - In `written.<boot>` it is marked at once, without a sync: what a process has written is there
    for the next one, however the first ended. <boot> is the kernel's boot ID: after a power cut the
    file is not believed, and removed.
  - In `present` it is marked once fdatasync(2) of the data has succeeded: every few seconds, at the
    close, and at once when the device is whole. Bits are only ever set there, and each stands for
    itself: a page of the record that reached the disk only in part, or before another, is right.
    Only a repair (`DeviceFile.discard`) takes bits back, and syncs that before it goes on. `check`
    finds what to repair: bytes that are not what the device's table says.
  - When fdatasync fails, the pages it was about are lost, though they can still be read for a
    while. Whatever was written since the last one is absent again, also what other threads are
    writing at that moment (an epoch tells), and is fetched anew.
  - A device is *complete* when all of it is present and synced. Only then may it be mounted as a
    plain file, or its fanotify mark be removed: from there on nobody asks for what is missing.
  - A record belongs to the file beside it: both are made in a new directory that then gets its
    name, and removed by taking the name away first. No file is ever replaced, punched or truncated.
    A device whose files do not fit each other is removed when the cache is loaded; what is not
    ours is left alone.
  - Below the limits of free space (`lazyimg.host.space`) nothing is stored, and devices that nobody
    uses are removed, the one that was not used for the longest time first. In use is what was
    opened until it is released, and what anybody refers to. Nothing is removed before
    `start_culling`: what was mounted by the process before this one must be opened again first.
  - Who reads a device that is mounted has its pages in memory: those of EROFS. So the kernel is
    told every few seconds to forget those of the files in use, which it would have as well.

File systems: ext4, xfs, btrfs. EROFS cannot be mounted from files on tmpfs, overlayfs or FUSE;
such directories are refused (`file_system`).

Concurrency: everything but `write` and `close` may be called in any thread. A range is looked up
without a lock (one slice of a bytearray); marks are set under a lock of the file, which is held for
one small pwrite(2). One thread syncs and removes. An fd is closed when nobody refers to its
`DeviceFile` any more, so that no thread can meet a number that was given to another file; at the
close of the cache, when no thread is left, at once.
"""
