"""SOCI: indexes of ordinary layers, beside the image, as the soci snapshotter has them.

A zTOC belongs to one layer: gzip-compressed, or not compressed. It lists the members of the tar,
with where in the tar their bytes begin, and points at which the gzip stream can be entered: byte
and bit of the blob, byte of the tar, and the 32 KiB of tar before it. Between two points lies a
span. It has the sha256 of each span's *compressed* bytes, which do not decide what they decode to:
the same bytes, entered with another window, decode to others without an error. So the digest that a
device of such spans has, and is named by, is of both (`lazyimg_formats.gzip_spans.digest_input`).

A SOCI index lists the zTOCs of an image; layers that are small have none. It has the form of an
image's manifest. The first version of it refers to the image (`subject`), so that it is found by
whoever asks the registry for referrers; of the second one the image's manifest has the digest in an
annotation, so that it is as trustworthy as the manifest.

`flatbuffers` the encoding; `ztoc` a zTOC's parts; `toc` a zTOC to a LayerIndex; `manifest` the SOCI
index; `writer` an index that a node has made of a layer to a zTOC.

Source: github.com/awslabs/soci-snapshotter, ztoc/ (ztoc.fbs, the C code of compression/), soci/ and
what fs/span-manager checks.
"""
