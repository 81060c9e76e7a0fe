"""containerd's snapshots: layers that were unpacked, layers that come when they are read.

containerd (or CRI through it) calls the service `containerd.services.snapshots.v1.Snapshots` on a
unix socket: Prepare makes a directory for the next layer or a container, Commit turns it into a
layer, Mounts says what to mount. A layer whose Prepare names its chain (the label
`containerd.io/snapshot.ref`) and that can be loaded lazily is answered with ALREADY_EXISTS: then it
is there as a committed snapshot without a directory, and containerd downloads nothing of it.

    Prepare, ref  --> lazy?  yes: committed, remote   --> the next layer, or a container on top
                      no: active, as without the label --> unpacked by containerd --> Commit

    container: overlay of   upper (fs/, work/)
                            fs/ of committed layers that were unpacked, the topmost first
                            mnt/<fsid> of the remote layers below them, merged to one EROFS image
               with a user namespace: of upper, and of id-mapped mounts (`mapped`) of the others

Files: `lifecycle` decides (pure: which step is allowed, what it changes), `overlay` plans what is
mounted (pure), `records` keeps what is known (SQLite; `queue` is a part of it), `directories` is
the disk, `mapped` shows lower directories with other owners, `service` puts them together,
`grpc_server` speaks to containerd. `beforehand` makes images ready when they are pulled;
`completion` works on the queue.

Rules:
  - A snapshot's key means nothing here; containerd puts its namespace and a number into it. Only a
    view that a client compares with what is on top of it is known by its key: meanwhile both stand
    on a bootstrap whose times spare containerd the reading of files (`lazyimg.images.comparable`).
  - Remote snapshots lie below all others: on a layer that was unpacked, only unpacked ones follow.
  - Each call is one transaction, and none is held across a call to somebody else. A directory is
    made before its record is committed, and removed after its record is gone: whatever dies in
    between leaves a directory that no record knows, which the next start (or Cleanup) removes.
  - A number is never used again, so a directory that is being removed is in nobody's way: removing
    happens aside, by renaming first.
  - Nobody waits for what is removed: containerd holds a lock while it calls Remove, so that a slow
    unmount would hold up every Prepare. What was mounted for a snapshot is taken back once the
    answer is given; Cleanup waits for it, for a while.
  - Nobody checks the diff ID of a lazy layer, and containerd takes one that is there for every
    image with that chain. So each image is completed after its first container
    (`lazyimg.images.completion`). What was found of a layer is a fact about images, and in their
    library; what follows for snapshots is decided in the transaction that makes them, so it is
    here: layers of an image that lies are quarantined, from the lying one up. What runs on them
    goes on; Prepare and View refuse; they lose the label that names their chain, so that it is
    there anew for the next image that is pulled. They are forgotten when they are removed. A crash
    between the two records is made good by the queue.
  - What is shown is decided by the uppermost remote snapshot below: one of an honest image may
    stand on one that is quarantined, and show all layers of its own image.
  - A chain that is there is given to an image only if it has that chain, and may read its layers.
  - What a process before this one mounted is mounted again from the records, without a registry.
  - What a caller is told is done is done: records are synced. Data that a container writes is as
    safe as the file system makes it, as with containerd's own snapshotters.

On disk, below ROOT/snapshotter:
    records.sqlite
    records.reserve             room for the removal of a record when the disk is full
    snapshots/<number>/fs       what was written: the upper directory, later a lower one
    snapshots/<number>/work     of an active snapshot, for overlayfs
    mapped/<number>/<name>      id-mapped mounts of lower directories, for user namespaces
    removed/<number>            on its way out
"""
