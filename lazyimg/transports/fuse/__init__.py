"""Serving reads through FUSE, below EROFS that is mounted from its files, or from loop devices.

The transport mounts a flat, read-only tree: a file for each device that is not complete. EROFS is
mounted with `device=<tree>/<name>`, opens each file once and keeps it. A device that is complete
when it is mounted is given to EROFS as the cache's file: no process is in its path. Where EROFS
takes block devices only (before Linux 6.12), loop devices lie between (`lazyimg.host.loops`). They
read directly (LO_FLAGS_DIRECT_IO): one READ for each of their requests, in nobody's thread.

Life cycle: `FuseTransport.start` opens /dev/fuse, mounts, and starts a few threads. `prepare` puts
devices into the tree before a mount, `release` takes them out after the last one. `stop` fails
what is pending and detaches the tree.

    kernel --READ--> thread: present: read the cache's file, answer
                             at hand: decode, answer, store
                             absent:  event loop: Filler.fill -> DeviceFile.write, then answer

Rules:
  - Every READ is answered once, with all of its bytes or with EIO. Where the connection is lost,
    the kernel fails what waits and what comes. Nothing is ever answered with less, or with zeros
    for what is not there: EROFS of some kernels takes the missing end of a read for zeros, and so
    does a loop device.
  - Files are opened with FOPEN_DIRECT_IO, and reads are asynchronous (FUSE_ASYNC_DIO). EROFS has
    the pages that its readers share; with others in FUSE's inode and in the cache's file, an image
    would take three times its size of memory. So FUSE keeps none, and what is read from the cache's
    file is dropped there (`DeviceFile.read_into`). One read of EROFS is one READ: it fails as a
    whole, and a reader that is killed takes nothing of it along.
  - What is not small goes from the pages of the cache's file into the answer through a pipe, and is
    not copied here (`desk`).
  - What is asked is filled, no more: EROFS's read-ahead is enough for what is local; `following`
    and the filler see to those who read in order.
  - A node's number is the inode number of the cache's file, a READ names nothing else, and nothing
    is kept of what the kernel looked up. So another process can go on with the same fd: it sends
    NOTIFY_RESEND, and the kernel asks again what the dead one had taken (`start`, `control_fd`).
    Kernels before 6.9 do not: what was taken lies in shared memory, too, and is answered from there
    (`taken`). Where neither works the connection is closed: readers get EIO, nobody waits for good.
  - All threads read the one fd. A clone of it would belong to this process alone, and the kernel
    fails what was taken from it when the process dies.
  - With `passthrough`, a complete device is a file of the tree too, and opened with a backing file:
    the kernel reads that by itself, whatever becomes of this process. An inode has one backing
    file for all who have it open; it is given back after the last.
  - The kernel gives the connection up, for good, when a request takes ten times as long as a fill
    may (FUSE_REQUEST_TIMEOUT): only two stuck processes can be the reason.

Concurrency: threads block in read(2) of /dev/fuse; the protocol's state is shared with the event
loop under one lock, never held across a system call. A present range needs no lock: it is looked up
and answered by its thread. The threads end when the connection does: `stop` aborts it.

Source: include/uapi/linux/fuse.h, fs/fuse/, fs/erofs/fileio.c.
"""
