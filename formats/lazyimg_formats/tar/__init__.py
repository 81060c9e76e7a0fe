"""Tar archives: a push scanner that finds what an archive holds and where, and a small writer.

The rules are those of Go's archive/tar, because containerd, umoci and containers/storage unpack
layers with it: where two readers of tar differ, an image must mean here what it means there.
  - Formats: V7, ustar, PAX, GNU (long names, base-256 numbers), star's prefix.
  - Local PAX records replace what the header says; a record with an empty value is as if it were
    not there, but for an attribute's, which then is an empty one (umoci leaves it out, containerd
    and containers/storage do not). A second extended header replaces the first. Global records are
    checked and have no effect.
  - Sparse files: old GNU, PAX 0.0, 0.1 and 1.0.
  - The archive ends at two blocks of zeros, or where the bytes end between two members. What
    follows means nothing.
  - Kinds that containerd refuses to unpack (volume labels, continuations, ...) are refused.

`header` one block, `pax` records, `sparse` maps, `scanner` the archive, `writer` the way back,
`comparison` an archive against an index of it.
Everything raises FormatError only.
"""
