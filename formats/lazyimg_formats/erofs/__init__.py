"""EROFS images without compression: a reproducible writer, and a reader that trusts nothing.

An image is a superblock, a table of device slots, inodes with what belongs to them (extended
attributes, chunk indexes, the tail of a directory or a symbolic link), and blocks. A regular file's
bytes lie on a *device*: flat, from a block of the *unified address space* on, into which the slots
map the devices; or in chunks, each with a device number and a block of that device. Device number 0
is the unified space itself and begins with the image, number N is slot N - 1.

`layout` declares the kernel's structures. `superblock`, `inode`, `dirent`, `xattr` and `chunk` turn
one structure each into values and back. `tree` is what the writer takes, `placement` and `writer`
place and serialize it, `reader` walks an image.

What the writer makes (bytes):
  0       zeros
  1024    superblock; the checksum covers it up to 4096
  1152    device slots, 128 each; a device without blocks has none, for 0 blocks turn mapping off
  ...     inodes, 64 each and always extended (each has its own mtime), every one at a multiple of
          32; the root is placed first, since root_nid has 16 bits. Children of a directory follow
          each other. Inode, attributes and inline tail lie in one block, or the tail is not inline
  ...     blocks: directories and targets that are not inline, embedded files
The first device begins, in the unified space, at the block behind the image, the next behind it.

Rules:
  1. The same tree and devices give the same bytes: no clock, no random number, names in the order
     of their bytes, the UUID made from the rest of the image.
  2. No holes. Over cachefiles, Linux 6.1 and 6.12 fill the rest of a read-ahead request with zeros
     when they meet one.
  3. Reading is bounded: limits are named in `layout`, names of a directory must rise strictly, and
     a directory may be reached once.

Source: Linux fs/erofs/erofs_fs.h (6.18), super.c, inode.c, dir.c, xattr.c, data.c. 48-bit block
addresses and the metabox are not supported: such images are refused.
"""
