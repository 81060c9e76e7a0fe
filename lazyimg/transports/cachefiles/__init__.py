"""Serving reads through /dev/cachefiles in on-demand mode (Linux 6.1 to 7.1).

Life cycle: `CachefilesTransport.start` opens the device, tells the kernel the cache directory and
the limits, binds, and starts one thread. `stop` fails what is pending and gives everything back.

    kernel --message--> thread: parse, protocol.receive --actions--> answer, write, or a task
    event loop: Filler.fill -> Sink.write (threads) -> protocol.finish -> READ_COMPLETE

Rules:
  - An OPEN is answered by the thread at once, whatever happens: until then a process hangs that
    not even SIGKILL ends. No code between reading an OPEN and answering it waits for anything.
  - A READ is completed exactly once. Completing it without having written is how a read fails:
    the reader gets EIO, and the next read asks again.
  - A READ proves that its range is absent: it is always filled. What is present is learned by
    SEEK_DATA, on the object's own fd or on its file in the cache.
  - An object's fd is closed only when no write or completion is using it, so that a number that
    the kernel hands out again never receives another object's bytes.
  - The kernel reuses the number of a READ whose reader was killed; the newer READ owns it.

Concurrency: the thread owns the control fd's reading side. The protocol's state is shared with the
event loop under one lock, held for microseconds and never across a system call. Bytes that are in
memory are written by the thread itself, so that a bootstrap is readable whatever the event loop
does. Fetched bytes are written by the threads that have them, or by a few of the transport's own,
through a few page-aligned buffers: pwrite(2) on an object is O_DIRECT. Culling runs in a thread of
its own, because `cull` acts on the working directory and that thread has its own.

On disk: `<dir>/cache/Ierofs,<domain>/@xx/D<cookie>`, sparse files, 256 fan-out directories
(`backing.py`); `<dir>/graveyard` is the kernel's; `<dir>/staging` has devices that were made
whole and are not in the cache yet (`staging.py`).

Source: Documentation/filesystems/caching/cachefiles.rst, fs/cachefiles/ondemand.c.
"""
