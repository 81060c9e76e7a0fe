"""The protocol of /dev/fuse, as bytes, as far as a read-only tree of files needs it.

The kernel sends one request per read(2): a header with a number (`unique`), then what the operation
takes. The daemon answers each with one write(2): a header with the same number, an error, or the
result. FORGET, INTERRUPT and DESTROY get no answer. A write with the number 0 is a notification:
the daemon speaks unasked.

A request that was asked again after a takeover has bit 63 set in its number, which is part of it.
`layout` declares the kernel's structures, `messages` gives them meaning. Nothing here reads or
writes a file.

Source: include/uapi/linux/fuse.h, Documentation/filesystems/fuse/fuse.rst.
"""
