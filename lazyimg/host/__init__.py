"""This machine: what its kernel can do, and the mounts on it.

Rules:
  - The daemon never waits for itself. A process in mount(2) or umount(2) waits for answers that
    the daemon must give, and cannot be killed meanwhile: so each such call is made by a child
    process that holds none of the daemon's fds (`mount_child.py`, standard library only). One
    that is idle is kept for the next call (`mount_calls`); it ends with the daemon.
  - Where EROFS takes no files, loop devices lie over them (`loops`). The process that mounts makes
    them and closes them after it: they free themselves with the mount, so none is ever left.
  - The daemon must not depend on a file that it serves: `own_mounts` refuses to serve then.
  - Overlays state `index`, `metacopy` and `redirect_dir` themselves: the kernel's defaults differ
    from one distribution to the next.
  - What a cache may take of a disk is one rule for all (`space`).
  - What a machine lacks is said with its remedy (`preflight`), before anything else fails.

`mount_table` is pure (text of /proc/self/mountinfo in, values out); the rest does I/O. Nothing here
knows of images.
"""
