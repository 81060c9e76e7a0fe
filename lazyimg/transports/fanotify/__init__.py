"""Serving reads of plain files by fanotify's pre-content events (Linux 6.14 or later).

EROFS is mounted from sparse files of the cache (`lazyimg.cache`). Each that is not complete has a
mark: whoever reads it waits until the event that this raises was answered. The kernel then reads
the file itself, so no byte passes through this process.

Life cycle: `FanotifyTransport.start` makes the group and one thread. `prepare` opens devices and
marks them, before the mount: what opened a file that had no mark raises no events, ever. A mark is
removed once its device is complete (all of it present and synced); from then on nobody asks, in
mounts that exist as well. `release` removes it when nobody has the file open any more. `stop` fails
what is pending, seals what is still mounted and incomplete, and closes the group.

    kernel --event, with an fd--> thread: parse, protocol.receive --actions--> answer, or a task
    event loop: Filler.fill -> DeviceFile.write (threads) -> protocol.finish -> answer, close the fd

**Nothing here fails closed by itself.** When the last fd of the group is closed, the kernel lets
every read pass, and a hole reads as zeros. So:

  - The group's fd is held by the supervisor as well: while no worker runs, readers wait. And by a
    small process of its own, the guard, which outlives both: when they are gone it seals (see
    below) what is left, and ends (`guard`, `guarding`).
  - Nothing is allowed whose range is not present in the cache's record, also after a fill.
  - Before the group is closed, the incomplete files that are still open elsewhere (a lease tells)
    are cut to nothing and removed from the cache: *sealed*. EROFS gives EIO for what lies past the
    end of a file. That costs what was fetched of them.
  - The queue of events has no limit, since in a full one reads pass. Should events be lost all the
    same, every marked device is sealed and the owner of the mounts is told: what was read may be
    wrong, and is in the kernel's memory.
  - Worker, supervisor and guard killed in the same instant: reads of holes give zeros. The docs
    say so, and the transport is used by configuration only.

Rules:
  - Every event is answered exactly once, then its fd is closed. Answers find their event by the
    number of its fd alone; closing first would give the number to another event.
  - A process that takes over therefore denies (EAGAIN: the kernel reads again) every number that
    may have been read, before it reads anything. Except what waits for a fill: that is in the
    journal, its numbers are reserved, and it is filled as if nothing had happened (`journal`).
    Numbers are bounded by the limit of open files, which is set to `MAX_FDS`.
  - This process never waits for itself. A device's fd is opened before its mark; after a takeover
    it is replaced by one that came with an event, since those raise none (`Server.own`). An event
    of this process is denied, unless it shortens a file.
  - tmpfs and overlayfs refuse marks. A loop device on a marked file reads without events: no mount
    here uses one.

Concurrency: the thread owns the group's reading side, and answers what is present or must fail. The
protocol's state is shared with the event loop under one lock, never held across a system call.

Source: fanotify(7), fs/notify/fanotify/, fs/erofs/fileio.c.
"""
