"""Images to lazily loadable images: each layer becomes zstd:chunked, nothing else changes.

    source blob -> decompress -> scan the tar, cut and digest it -> compress -> target blob
                   `layers.decompress`  `cut`                       `compress`  `layer`

`layer` converts one layer as a stream: neither the layer nor its tar is ever held or stored whole.
`image` walks an image: index, manifests, layers; and writes their documents anew.

What holds:
  - The uncompressed layer stays byte-identical, checked against the config's diff ID before the
    layer's last byte is pushed; so config, diff IDs and chain IDs do not change.
  - A layer's bytes depend only on its tar, the level, and zstd's version: not on timing, on how
    the source was compressed, or on how its bytes arrived.
  - What is pushed can be mounted: each member is held against the rules that reading its layer
    will hold it against, before it is written into the TOC.
  - Memory is bounded, whatever the layer holds: a TOC has at most 150 MiB, tar-split data 64 MiB,
    and the names of members that tar-split data must not repeat are fewer than 2**21.
  - Nothing is tagged before everything is there. A failure, or an interruption, leaves at most
    blobs that nothing names; the target's own collection removes them. A layout that was made for
    it is removed.

How a tar is cut: what is no payload (headers, padding, the end) lies in frames of its own; a file
is cut into equal pieces of 64 to 128 KiB (a multiple of 4 KiB; the last may be shorter; small
files are one), each of them one frame. Pieces of zeros are marked as such in the TOC, neighbours
together, and never fetched again; their frames are in the blob for ordinary readers. Shorter runs
of zeros are not worth a frame: they compress to nothing.

A converted layer's annotations say what it was made from: the source layer's digest, and the
parameters. Where the target's tag already names such a layer, or the target has it under another
platform, it is taken over as it is. A layer that already is zstd:chunked is copied.

An image index is rewritten with the new manifests. Manifests that are no images (attestations,
whose subjects are digests of manifests that no longer exist) are left out.

Concurrency: the event loop only moves bytes. For each layer one thread at a time decompresses,
cuts and digests, and up to one per core compresses; at most `Options.layers` layers are worked on
at once. Compressing a batch of frames is one call that does not hold the interpreter's lock, so
that threads seldom wait for each other.
"""
